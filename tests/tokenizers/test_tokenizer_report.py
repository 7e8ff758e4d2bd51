"""The figures of the report, and the commands."""

import gzip
import json
import sys

import pytest

from jgpt import tokenizers
from jgpt.tokenizers import __main__ as command
from jgpt.tokenizers import report
from tests.tokenizers.tokenizer_corpus import sentences


def test_figures_of_bytes_by_hand(trained):
    row = report.measure("byte", trained["byte"], ["猫a", "犬"])  # 3 characters, 7 bytes
    assert row.vocabulary == 266
    assert row.tokens_per_character == pytest.approx(7 / 3)
    assert row.characters_per_token == pytest.approx(3 / 7)
    assert row.bytes_per_token == 1
    assert row.unk_share == 0
    assert row.megabytes_per_second > 0


def test_unknown_words_are_counted(trained):
    row = report.measure("word", trained["word"], ["鱻 鱻\n"])
    assert row.unk_share == pytest.approx(2 / 3)


def test_no_text_is_an_error(trained):
    with pytest.raises(ValueError, match="no text"):
        report.measure("byte", trained["byte"], [""])


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for i in range(40):
            record = {"body": "\n".join(sentences(10, seed=i))}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def test_train_writes_a_tokenizer_that_loads(corpus_file, tmp_path, capsys):
    output = tmp_path / "tokenizer"
    command.main(
        [
            "train",
            f"--input={corpus_file}",
            "--field=body",
            "--vocab_size=400",
            f"--output={output}",
        ]
    )
    tokenizer = tokenizers.load(output)
    assert tokenizer.vocab_size == 400
    assert tokenizer.fingerprint[:16] in capsys.readouterr().out


def test_report_compares_trained_and_saved(corpus_file, trained, tmp_path, capsys):
    trained["char"].save(tmp_path / "saved")
    command.main(
        ["report", f"--input={corpus_file}", "--field=body", f"--output={tmp_path / 'report'}",
         "--train=unigram:400,byte,word", f"--tokenizers={tmp_path / 'saved'}"]
    )  # fmt: skip
    values = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in values["tokenizers"]] == ["unigram", "byte", "word", "saved"]
    assert values["documents"] == 4  # every tenth of the forty
    fertility = [row["tokens_per_character"] for row in values["tokenizers"]]
    assert fertility[0] < fertility[3] < fertility[1]
    assert (tmp_path / "report" / "fertility.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "unigram" in shown and "saved" in shown


def test_few_documents_are_measured_on_themselves_and_it_says_so(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("\n".join(sentences(50)), encoding="utf-8")
    command.main(["report", f"--input={tmp_path / 'one.txt'}", "--train=byte"])
    assert "measured on the text that was trained on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--input={file}"], "nothing to compare"),
        (["report", "--input={file}", "--train=morse:10"], "'morse:10'"),
        (["report", "--input={file}", "--train=unigram:many"], "'unigram:many'"),
        (["report", "--input={file}", "--field=body", "--tokenizers=/nowhere"], "no tokenizer at"),
        (["train", "--input=/nowhere.txt", "--output={file}.out"], "/nowhere.txt"),
        (["train", "--input={file}", "--output={file}.out"], "text"),
        (
            ["train", "--input={file}", "--field=body", "--vocab_size=9999", "--output={file}.out"],
            "tokenizer.vocab_size is 9999",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, corpus_file):
    with pytest.raises(SystemExit) as caught:
        command.main([argument.format(file=corpus_file) for argument in arguments])
    assert message in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_the_microworld_is_an_input(tmp_path):
    command.main(
        ["train", "--input=microworld", "--kind=char", "--train_megabytes=0.05",
         f"--output={tmp_path}"]
    )  # fmt: skip
    assert tokenizers.load(tmp_path).encode("です")


def test_tokenizers_import_no_jax():
    import subprocess

    code = "import sys, jgpt.tokenizers, jgpt.tokenizers.report; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
