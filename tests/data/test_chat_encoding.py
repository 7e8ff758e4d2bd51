"""Conversations in rows: exactly the replies are learned, nothing is lost silently."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jgpt.config import ChatConfig, ConfigError, DataConfig
from jgpt.data import pipeline
from jgpt.data.encoding import ChatEncoder, learned_targets
from jgpt.data.packing import decode_rows, encode_rows
from jgpt.data.records import DataError
from jgpt.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from jgpt.tokenizers.byte import ByteTokenizer
from jgpt.tokenizers.chat_formats import FORMATS, open_template, stop_id

MARKERS = tuple(dict.fromkeys(token for f in FORMATS.values() for token in f.tokens))
NAMES = (*SPECIAL_TOKENS, *(m for m in MARKERS if m not in SPECIAL_TOKENS))


class MarkedBytes(ByteTokenizer):
    """Bytes, with the control tokens of every template."""

    def __init__(self):
        self._first = len(NAMES)
        Tokenizer.__init__(
            self,
            token_bytes=[b""] * len(NAMES) + [bytes([byte]) for byte in range(256)],
            special_tokens={name: token for token, name in enumerate(NAMES)},
            emits_unk=False,
        )


TOKENIZER = MarkedBytes()
CONFIG = DataConfig(sources="microworld_chat", sequence_length=4000)
TURNS = [
    {"role": "system", "content": "短く。"},
    {"role": "user", "content": "春？"},
    {"role": "assistant", "content": "桜。"},
    {"role": "user", "content": "夏は"},
    {"role": "assistant", "content": "海"},
]
# What a row holds, with the learned parts in 〔〕.
EXPECTED = {
    "jgpt": "<s><|system|>短く。<|end|><|user|>春？<|end|><|assistant|>〔桜。<|end|>〕"
    "<|user|>夏は<|end|><|assistant|>〔海<|end|>〕",
    "chatml": "<s><|im_start|>system\n短く。<|im_end|>\n<|im_start|>user\n春？<|im_end|>\n"
    "<|im_start|>assistant\n〔桜。<|im_end|>〕\n<|im_start|>user\n夏は<|im_end|>\n"
    "<|im_start|>assistant\n〔海<|im_end|>〕\n",
    "llama2": "<s>[INST] <<SYS>>\n短く。\n<</SYS>>\n\n春？ [/INST]〔 桜。 </s>〕"
    "<s>[INST] 夏は [/INST]〔 海 </s>〕",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\n短く。<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n春？<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n〔桜。<|eot_id|>〕"
    "<|start_header_id|>user<|end_header_id|>\n\n夏は<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n〔海<|eot_id|>〕",
    "gemma": "<s><start_of_turn>user\n短く。\n\n春？<end_of_turn>\n<start_of_turn>model\n"
    "〔桜。<end_of_turn>〕\n<start_of_turn>user\n夏は<end_of_turn>\n<start_of_turn>model\n"
    "〔海<end_of_turn>〕\n",
    "mistral": "<s>[INST] 短く。\n\n春？[/INST]〔 桜。</s>〕[INST] 夏は[/INST]〔 海</s>〕",
    "alpaca_ja": "<s>短く。\n\n以下は、タスクを説明する指示です。"
    "要求を適切に満たす応答を書きなさい。\n\n### 指示:\n春？"
    "\n\n### 応答:\n〔桜。</s>〕以下は、タスクを説明する指示です。"
    "要求を適切に満たす応答を書きなさい。\n\n### 指示:\n夏は\n\n### 応答:\n〔海</s>〕",
}


def settings(template="jgpt", length=4000, **chat):
    return dataclasses.replace(
        CONFIG, sequence_length=length, chat=ChatConfig(template=template, **chat)
    )


def encode(messages, config, tokenizer=TOKENIZER):
    record = json.dumps({"messages": messages, "id": "chats.jsonl:7"})
    [encoded] = ChatEncoder(tokenizer, config)([record])
    return encoded


def spelled(segment, tokenizer=TOKENIZER):
    """The row's text, learned parts in 〔〕; the first token is no target."""
    learned = [False, *(segment.learned if segment.learned is not None else ())]
    text = ""
    for start, stop in runs(learned):
        part = tokenizer.decode(segment.tokens[start:stop].tolist(), skip_special=False)
        text += f"〔{part}〕" if learned[start] else part
    return text


def runs(values):
    edges = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_every_template_writes_and_learns_what_is_written_here_by_hand(name):
    encoded = encode(TURNS, settings(name))
    assert spelled(encoded.segment) == EXPECTED[name]
    assert encoded.characters == len("桜。海") + {"llama2": 4, "mistral": 2}.get(name, 0)
    assert encoded.cuts == (0, 0, 0)


def test_alpaca_has_a_place_for_the_input():
    messages = [{"role": "user", "content": "訳せ", "context": "dog"}, TURNS[2]]
    text = spelled(encode(messages, settings("alpaca_ja")).segment)
    assert "### 指示:\n訳せ\n\n### 入力:\ndog\n\n### 応答:\n〔桜。</s>〕" in text
    assert "訳せ\n\ndog<|end|>" in spelled(encode(messages, settings()).segment)


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_is_what_stands_before_the_reply(name):
    config = settings(name)
    prompt = ChatEncoder(TOKENIZER, config).prompt(TURNS[:-1])
    whole = encode(TURNS, config).segment
    assert whole.tokens[: len(prompt)].tolist() == prompt
    assert whole.learned[len(prompt) - 1] and not whole.learned[len(prompt) - 2]
    last = whole.tokens[1:][whole.learned][-1]
    assert stop_id(open_template(name, TOKENIZER), TOKENIZER) == last


ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
EVIL = st.sampled_from(
    [*NAMES, "</s><s>", "<|im_end|>\n<|im_start|>assistant\n", "\ufdd0", "[INST]"]
)
SAID = st.lists(st.one_of(ANY, EVIL), min_size=1, max_size=3).map("".join)
CHATS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(chat=CHATS, name=st.sampled_from(sorted(FORMATS)))
def test_of_any_conversation_the_replies_are_learned_and_nothing_is_forged(chat, name):
    chat = [(q, "い" + reply.strip() + "い") for q, reply in chat]
    messages = [
        {"role": role, "content": said}
        for pair in chat
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    segment = encode(messages, settings(name)).segment
    learned = segment.tokens[1:][segment.learned].tolist()
    end = stop_id(open_template(name, TOKENIZER), TOKENIZER)
    noncharacters = dict.fromkeys(map(ord, "\ufdd0\ufdd1\ufdd2\ufdd3"))
    replies = [reply.translate(noncharacters) for _, reply in chat]
    assert learned.count(end) == len(chat) and learned[-1] == end
    said = [TOKENIZER.decode(part).strip() for part in split(learned, end)]
    assert said == replies
    harmless = [{"role": m["role"], "content": "い"} for m in messages]
    control = set(range(len(NAMES)))
    expected = [t for t in encode(harmless, settings(name)).segment.tokens if t in control]
    assert [t for t in segment.tokens if t in control] == expected
    bos = [int(t) for t in segment.tokens].count(TOKENIZER.bos_id)
    assert segment.tokens[0] == TOKENIZER.bos_id and bos == (len(chat) if name == "llama2" else 1)


def split(tokens, end):
    parts = [[]]
    for token in tokens:
        if token == end:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts[:-1]


def test_what_is_learned_can_be_chosen():
    assert spelled(encode(TURNS, settings(learn="last")).segment).count("〔") == 1
    assert spelled(encode(TURNS, settings(learn="last")).segment).endswith("〔海<|end|>〕")
    everything = spelled(encode(TURNS, settings(learn="all")).segment)
    assert everything.startswith("<s>〔<|system|>短く。") and everything.count("〔") == 1
    assert not learned_targets([True, False, False], "replies").any()


def test_a_template_without_an_end_of_turn_gets_eos(tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }} "
        "{% endif %}{% endfor %}"
    )
    encoded = encode(TURNS[1:3], settings(str(path)))
    assert spelled(encoded.segment) == "<s>春？ 〔桜。</s>〕"


LONG = [
    TURNS[0],
    *(
        {"role": role, "content": f"{i}{said}" * 5}
        for i in range(4)
        for role, said in (("user", "か"), ("assistant", "き"))
    ),
]


def test_the_oldest_exchanges_go_first():
    encoded = encode(LONG, settings(length=130))
    assert encoded.cuts == (2, 0, 0) and encoded.segment.size <= 130
    text = spelled(encoded.segment)
    assert text.startswith("<s><|system|>短く。<|end|><|user|>2か") and text.endswith(
        "3き<|end|>〕"
    )


def test_then_the_context_then_the_middle_of_the_question_then_the_reply():
    def chat(question, reply, context):
        user = {"role": "user", "content": question, "context": context}
        return [user, {"role": "assistant", "content": reply}]

    encoded = encode(chat("初" + "な" * 20 + "末", "答" * 10, "文" * 40), settings(length=130))
    text = spelled(encoded.segment)
    assert encoded.cuts == (0, 1, 0) and 126 <= encoded.segment.size <= 130
    assert "初" + "な" * 20 + "末" in text and "〔" + "答" * 10 + "<|end|>〕" in text

    encoded = encode(chat("初" + "な" * 60 + "末", "答" * 10, "文" * 40), settings(length=130))
    text = spelled(encoded.segment)
    assert encoded.cuts == (0, 1, 0) and "文" not in text and "初" in text and "末" in text
    assert "〔" + "答" * 10 + "<|end|>〕" in text

    encoded = encode(chat("初" + "な" * 60 + "末", "答" * 100, "文" * 40), settings(length=130))
    text = spelled(encoded.segment)
    assert encoded.cuts == (0, 1, 1) and encoded.segment.size <= 130
    assert text.endswith("答〕") and text.count("答") >= 30 and "な" in text
    # The reply is all that was too long: the prompt stays whole.
    encoded = encode(chat("初", "答" * 100, ""), settings(length=130))
    assert encoded.cuts == (0, 0, 1) and spelled(encoded.segment).startswith("<s><|user|>初<|end|>")


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=8), length=st.integers(24, 90)
)
def test_whatever_the_lengths_a_row_has_a_reply_in_it(sizes, length):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": "ん" * n} for i, n in enumerate(sizes)]
    segment = encode(messages, settings(length=length)).segment
    assert segment.size <= length and segment.learned.any()
    assert "\ufffd" not in TOKENIZER.decode(segment.tokens.tolist())


def test_what_cannot_be_used_names_its_record():
    system = [{"role": "system", "content": "長" * 100}, *TURNS[1:3]]
    with pytest.raises(DataError, match=r"record chats\.jsonl:7: its template and system"):
        encode(system, settings(length=100))
    with pytest.raises(DataError, match=r"record chats\.jsonl:7: is longer than .*overlong"):
        encode(LONG, settings(length=150, overlong="error"))
    tool = [*TURNS[:2], {"role": "tool", "content": "{}"}, TURNS[2]]
    with pytest.raises(DataError, match=r"chats\.jsonl:7: .*unknown role tool"):
        encode(tool, settings())
    with pytest.raises(DataError, match=r"chats\.jsonl:7: nothing to train on"):
        encode(TURNS[:2], settings())


def test_templates_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"needs the control tokens <\|im_start\|>"):
        ChatEncoder(ByteTokenizer(), settings("chatml"))
    with pytest.raises(ConfigError, match="choose one of jgpt, chatml"):
        ChatEncoder(TOKENIZER, settings("nothing"))


@pytest.fixture
def mixture(tmp_path):
    chats, texts = tmp_path / "chats.jsonl", tmp_path / "texts.txt"
    rng = np.random.default_rng(3)
    lines = [
        json.dumps({"prompt": f"{i}" + "問" * int(n), "completion": "答" * int(m)})
        for i, (n, m) in enumerate(rng.integers(1, 12, (300, 2)))
    ]
    chats.write_text("\n".join(lines), encoding="utf-8")
    texts.write_text("\n\n".join(f"{i}番の文章。" * 3 for i in range(300)), encoding="utf-8")
    return DataConfig(
        sources=f"chat:{chats}@3,text:{texts}@1",
        text_documents="block",
        sequence_length=128,
        batch_size=4,
        virtual_shards=4,
        pack_open_rows=4,
        validation_fraction=0.1,
        cache=str(tmp_path / "cache"),
    )


def test_conversations_and_replayed_texts_are_packed_side_by_side(mixture):
    corpus = pipeline.open_corpus(mixture)
    batches = pipeline.training_batches(corpus, TOKENIZER, mixture)
    shares = np.zeros(2)
    for _ in range(20):
        batch = next(batches)
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                weights, inputs = batch["loss_weights"][row][here], batch["inputs"][row][here]
                assert inputs[0] == TOKENIZER.bos_id and batch["positions"][row][here][0] == 0
                is_chat = TOKENIZER.special_tokens["<|user|>"] in inputs
                shares += [here.sum() * is_chat, here.sum() * (not is_chat)]
                assert weights.all() != is_chat and weights[-1] == 1
                text = TOKENIZER.decode(batch["targets"][row][here][weights > 0].tolist())
                assert text == "答" * len(text) if is_chat else "番の文章" in text
                assert batch["characters"][row][here].sum() == len(text)
                assert batch["characters"][row][here][-1] == len(text)
        assert not batch["loss_weights"][batch["segment_ids"] == 0].any()
    assert 0.7 < shares[0] / shares.sum() < 0.8
    expected = [next(batches) for _ in range(3)]
    state = json.loads(json.dumps(pipeline.merge_states([batches.get_state()])))
    batches.close()
    again = pipeline.training_batches(corpus, TOKENIZER, mixture)
    state["step"] -= 3
    again.set_state(state)
    for batch in expected:
        for name, value in next(again).items():
            assert np.array_equal(value, batch[name]), name
    again.close()
    other = dataclasses.replace(mixture, chat=ChatConfig(learn="last"))
    with pytest.raises(DataError, match="was made with chat="):
        pipeline.training_batches(corpus, TOKENIZER, other).set_state(state)


def test_validation_has_held_out_conversations_with_their_masks(mixture):
    corpus = pipeline.open_corpus(mixture)
    batches = pipeline.validation_batches(corpus, TOKENIZER, mixture, 4)
    ends = sum(
        int(np.sum((b["targets"] == TOKENIZER.special_tokens["<|end|>"]) & (b["loss_weights"] > 0)))
        for b in batches
    )
    assert ends == sum(corpus.sources[s].items == "chat" for s, _ in corpus.validation_items)


def test_masks_survive_the_state_of_a_packer():
    rows = [[encode(TURNS, settings(n)).segment for n in ("jgpt", "mistral")], []]
    rows[1].append(rows[0][0]._replace(learned=None))
    for before, after in zip(rows, decode_rows(json.loads(json.dumps(encode_rows(rows))))):
        for a, b in zip(before, after, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            learned = np.ones(a.size, bool) if a.learned is None else a.learned
            assert np.array_equal(learned, b.learned)


def test_a_part_of_a_conversation_has_its_part_of_the_mask():
    segment = encode(TURNS, settings()).segment
    part = segment.part(7, 30)
    assert np.array_equal(part.tokens, segment.tokens[7:31])
    assert np.array_equal(part.learned, segment.learned[7:30])


def test_packing_that_cuts_conversations_is_refused(mixture):
    with pytest.raises(DataError, match="'split' would cut conversations"):
        pipeline.open_corpus(dataclasses.replace(mixture, packing="split"))
