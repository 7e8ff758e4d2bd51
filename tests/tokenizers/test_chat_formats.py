"""Templates known by name: transformers' ids and masks, and the public models' texts."""

import importlib.util
import json
from pathlib import Path

import pytest

from jgpt import tokenizers
from jgpt.tokenizers import chat
from jgpt.tokenizers.chat_formats import FORMATS, open_template, token_names
from tests.tokenizers import test_chat
from tests.tokenizers.test_tokenizer_huggingface import llama_like

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="the folder holds a tokenizer.json")
    folder = tmp_path_factory.mktemp("formats")
    before = test_chat.MARKERS
    test_chat.MARKERS = [token for format in FORMATS.values() for token in format.tokens]
    test_chat.with_markers(llama_like, folder)
    test_chat.MARKERS = before
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS), encoding="utf-8")
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", ["two", "four"])
def test_ids_and_masks_are_transformers(folder, name, case):
    transformers = pytest.importorskip("transformers", reason="the other implementation")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **TOKENS
    )
    theirs.chat_template = FORMATS[name].template
    ours = tokenizers.load(folder)
    messages = test_chat.CHATS[case]
    encoded = open_template(name, ours).encode_for_training(ours, messages)
    expected = theirs.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.ids == expected["input_ids"]
    assert encoded.assistant_mask == [bool(m) for m in expected["assistant_masks"]]
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert open_template(name, ours).encode(ours, messages, add_generation_prompt=True) == prompt


def test_a_tokenizer_without_a_bos_of_its_own_writes_none(folder):
    ours = tokenizers.load(folder)
    assert token_names(ours)["bos_token"] == "<s>" and token_names(ours)["eos_token"] == "</s>"
    ours.bos_id = ours.eos_id
    assert token_names(ours)["bos_token"] == ""
    text = open_template("jgpt", tokenizers.load(folder)).render(test_chat.TURNS[:1])
    assert text.startswith("<s><|user|>")


PUBLISHED = {"llama3": "llama3", "gemma": "gemma", "chatml": "qwen2_5"}
"""A format -> the name of the public model's template in `trl`."""


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("prompt", [False, True])
def test_texts_are_those_of_published_templates(name, system, prompt):
    library = importlib.util.find_spec("trl")
    if library is None:
        pytest.skip("trl is not installed; it has the templates of public models")
    if name == "gemma" and system:
        pytest.skip("it refuses a system text, which ours puts before the first question")
    if name == "chatml" and not system:
        pytest.skip("Qwen 2.5 then writes a system text of its own")
    path = Path(library.submodule_search_locations[0], "chat_templates", f"{PUBLISHED[name]}.jinja")
    published = chat.ChatTemplate(path.read_text(encoding="utf-8"), TOKENS)
    turns = [
        {"role": "user", "content": " 春の花は？\n二つ。"},
        {"role": "assistant", "content": "桜と、梅です。"},
        {"role": "user", "content": "夏は"},
        {"role": "assistant", "content": "向日葵です。\n"},
    ]
    messages = [{"role": "system", "content": "短く。"}] * system + (turns[:3] if prompt else turns)
    ours = chat.ChatTemplate(FORMATS[name].template, TOKENS)
    assert ours.render(messages, prompt) == published.render(messages, prompt)
