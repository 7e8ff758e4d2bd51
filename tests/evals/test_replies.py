"""Checked replies: which questions count, and what is right."""

import itertools
import json

import pytest

from jgpt.data.tasks import MicroworldConversations
from jgpt.evals import replies
from jgpt.evals.writing import Sample


def sample(text, finished=True):
    return Sample("", text, finished, 0)


def test_the_last_exchange_is_asked_without_its_reply():
    messages = [
        {"role": role, "content": said}
        for role, said in (("user", "一"), ("assistant", "い"), ("user", "二"), ("assistant", "に"))
    ]
    items = [
        json.dumps({"messages": messages, "answer": "に", "kind": "qa", "id": "1"}),
        json.dumps({"text": "文章", "id": "2"}),
        json.dumps({"messages": messages[:2], "id": "3"}),
    ]
    first, second = replies.questions_of(items)
    assert list(first.messages) == messages[:3] and (first.answer, first.kind) == ("に", "qa")
    assert list(second.messages) == messages[:1] and second.answer is None


def test_recorded_replies_are_right_and_others_are_not():
    """Through the whole of the microworld's questions."""
    items = [d.text for d in map(MicroworldConversations(120).__getitem__, range(120)) if d]
    questions = replies.questions_of(items)
    recorded = [json.loads(item)["messages"][-1]["content"] for item in items]
    checkable = [(q, r) for q, r in zip(questions, recorded, strict=True) if q.answer is not None]
    assert {q.kind for q, _ in checkable} == {"qa", "arithmetic", "instruction"}
    assert all(q.is_right(r) for q, r in checkable)
    wrong = [q.is_right(r) for (q, _), (_, r) in itertools.pairwise(checkable)]
    assert sum(wrong) < 0.1 * len(wrong)
    passage = next(q for q in questions if q.kind == "qa")
    assert passage.messages[0]["context"]


def test_figures_are_shares_of_what_could_be_asked():
    def question(answer, kind):
        return replies.Question(({"role": "user", "content": "？"},), answer, kind)

    asked = [question("三", "a"), question("四", "a"), question("五", "b"), question(None, "b")]
    asked.append(question("六", "b"))
    written = {"三": sample("三です。"), "四": sample("五"), "五": sample("五", False), "六": None}

    def predict(state, questions):
        assert state == "weights"
        return [written[q.answer] for q in questions]

    figures = dict(replies.make(predict, asked)("weights"))
    assert figures == {
        "checked_questions": 3,
        "checked_accuracy": pytest.approx(2 / 3),
        "checked_finished": pytest.approx(2 / 3),
        "checked_accuracy/a": 0.5,
        "checked_accuracy/b": 1.0,
    }
    assert dict(replies.make(predict, asked[3:4])("weights")) == {}
