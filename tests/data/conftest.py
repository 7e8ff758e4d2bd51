"""Corpora on disk that the tests of the pipeline share."""

import json

import pytest


@pytest.fixture(autouse=True)
def cache_elsewhere(tmp_path_factory, monkeypatch):
    """No test writes to the user's cache."""
    monkeypatch.setenv("JGPT_CACHE", str(tmp_path_factory.getbasetemp() / "jgpt_cache"))


@pytest.fixture
def write_jsonl(tmp_path):
    """write_jsonl(texts, name) -> path of a JSONL file with these texts."""

    def write(texts, name="corpus.jsonl"):
        path = tmp_path / name
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
