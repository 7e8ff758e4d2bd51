"""Records: every format becomes the same messages, and a bad one is named."""

import json

import pytest

from jgpt.config import CleaningConfig, DataConfig
from jgpt.data import conversations
from jgpt.data.cleaning import record_cleaning
from jgpt.data.corpus import open_corpus
from jgpt.data.records import BadRecords, DataError

USER, REPLY = {"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}
SYSTEM = {"role": "system", "content": "短く。"}

FORMATS = [
    ({"messages": [SYSTEM, USER, REPLY]}, [SYSTEM, USER, REPLY]),
    ({"messages": [USER, REPLY], "system": "短く。"}, [SYSTEM, USER, REPLY]),
    (
        {"conversations": [{"from": "human", "value": "問い"}, {"from": "gpt", "value": "答え"}]},
        [USER, REPLY],
    ),
    ({"instruction": "問い", "input": "", "output": "答え"}, [USER, REPLY]),
    ({"instruction": "問い", "output": "答え", "category": 3}, [USER, REPLY]),
    (
        {"instruction": "問い", "context": "文脈", "response": "答え"},
        [{**USER, "context": "文脈"}, REPLY],
    ),
    ({"input": "問い", "output": "答え"}, [USER, REPLY]),
    ({"prompt": "問い", "completion": "答え"}, [USER, REPLY]),
    ({"prompt": [SYSTEM, USER], "completion": [REPLY]}, [SYSTEM, USER, REPLY]),
]


@pytest.mark.parametrize("record, messages", FORMATS)
def test_every_format_becomes_messages(record, messages):
    assert conversations.messages_of(record, "here") == messages
    values = json.loads(conversations.canonical(record, "here", "name"))
    assert values == {"messages": messages, "id": "name"}


def test_a_text_stays_a_document():
    values = json.loads(conversations.canonical({"text": "文章。"}, "here", "name"))
    assert values == {"text": "文章。", "id": "name"}


BAD = [
    ({}, "none of the fields messages, .*it has: none"),
    ({"question": "?"}, "it has: question"),
    ({"messages": []}, "'messages' must be a list"),
    ({"messages": "問い"}, "'messages' must be a list"),
    ({"messages": [USER, "答え"]}, r"messages\[1\] is a JSON str"),
    ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\] has no field 'content'"),
    ({"messages": [{**USER, "role": "boss"}, REPLY]}, r"messages\[0\]: field 'role' is 'boss'"),
    ({"messages": [USER, {**REPLY, "content": 3}]}, r"\[1\]: field 'content' holds a JSON int"),
    ({"messages": [USER, {**REPLY, "content": " "}]}, r"\[1\]: field 'content' is empty"),
    ({"messages": [USER]}, "no message of the assistant's"),
    ({"messages": [REPLY, USER]}, "the assistant speaks first"),
    ({"messages": [USER, SYSTEM, REPLY]}, "message 1 is a second or late system"),
    ({"conversations": [{"from": "human"}]}, r"conversations\[0\] has no field 'value'"),
    ({"instruction": "問い"}, "no field 'output'"),
    ({"instruction": "問い", "output": ""}, "field 'output' is empty"),
    ({"instruction": "", "output": "答え"}, "field 'instruction' is empty"),
    ({"input": "問い", "output": None}, "field 'output' holds a JSON NoneType"),
    ({"prompt": "問い", "completion": "\ud800"}, "'completion' holds half a character"),
    ({"text": 3}, "field 'text' holds a JSON int"),
    ([USER], "a JSON list, not an object"),
]


@pytest.mark.parametrize("record, message", BAD)
def test_a_bad_record_is_named_with_its_field(tmp_path, record, message):
    path = tmp_path / "chats.jsonl"
    lines = [json.dumps({"prompt": "問い", "completion": "答え"}), "", json.dumps(record)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(conversations.read_conversations(path, BadRecords(0), str))
    assert str(caught.value).startswith(f"{path}:3") and "\n" not in str(caught.value)


def test_texts_within_records_are_cleaned_gently(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": "ＡＢＣ《かな》", "completion": "ｶﾅ\u200b"}))
    [document] = conversations.read_conversations(
        path, BadRecords(0), record_cleaning(CleaningConfig())
    )
    said = [m["content"] for m in json.loads(document.text)["messages"]]
    assert said == ["ABC《かな》", "カナ"]


def test_the_same_question_is_never_on_both_sides(tmp_path):
    path = tmp_path / "chats.jsonl"
    lines = [
        json.dumps({"instruction": f"{i}は？", "input": "表", "output": f"{i}と{reply}"})
        for i in range(200)
        for reply in range(3)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    corpus = open_corpus(DataConfig(sources=f"chat:{path}", validation_fraction=0.2))
    [source] = corpus.sources
    sides = [list(source.training_texts()), list(source.validation_texts())]
    assert sum(map(len, sides)) == 600 and 60 < len(sides[1]) < 180
    training, held_out = ({conversations.asked(text) for text in side} for side in sides)
    assert not training & held_out
    assert "0は？\n\n表\n0と0" in set(corpus.training_texts()) | set(
        map(conversations.readable, sides[1])
    )


def test_another_reply_is_another_corpus(tmp_path):
    prints = []
    for reply in "はい", "否":
        path = tmp_path / f"{reply}.jsonl"
        path.write_text(json.dumps({"prompt": "行く？", "completion": reply}))
        config = DataConfig(sources=f"chat:{path}", validation_fraction=0.0)
        prints.append(open_corpus(config).fingerprint)
    assert prints[0] != prints[1]


def test_the_microworld_gives_the_kinds_that_are_asked_for():
    def kinds(source):
        config = DataConfig(sources=source, microworld_documents=200, validation_fraction=0.1)
        texts = open_corpus(config).sources[0].training_texts()
        return {json.loads(text)["kind"] for text in texts}

    assert kinds("microworld_chat") == {"qa", "arithmetic", "instruction"}
    assert kinds("microworld_chat:instruction+qa") == {"qa", "instruction"}
    with pytest.raises(DataError, match="has no kind 'story'; choose from qa"):
        kinds("microworld_chat:story")
