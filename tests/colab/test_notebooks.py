"""The notebooks: as their sources say, short, and executed with very small models."""

import contextlib
import importlib.util
import io
import json
import pathlib
import re

import jax
import matplotlib
import pytest

from jgpt import notebook, sharding
from jgpt.config import ConfigError
from tests.training.tiny import OVERRIDES

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "colab"
NAMES = ("quickstart", "moe_routing", "lora_instructions", "qlora")
MODEL = {
    "model.num_layers": 1,
    "model.hidden_size": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.intermediate_size": 64,
    "model.max_length": 256,
    "tokenizer.kind": "byte",
}
EXPERTS = {
    "model.moe.num_experts": 4,
    "model.moe.intermediate_size": 32,
    "model.moe.dispatch": "dense",  # the quickest to compile
}
RUN = {
    **{name: value for name, value in OVERRIDES.items() if not name.startswith(("model", "token"))},
    "data.sequence_length": 256,
    "data.batch_size": 4,
    "data.microworld_documents": 200,
    "data.chat.checked": 0,
    "train.steps": 4,
    "train.eval_every": 2,
    "train.sample_every": 0,
    "checkpoint.every": 4,
    "optimizer.warmup_steps": 1,
    "sample.final_samples": 0,
    "sample.max_new_tokens": 4,
}


def load_build():
    spec = importlib.util.spec_from_file_location("colab_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def cells_of(name):
    return build.read_cells((FOLDER / f"{name}.py").read_text(encoding="utf-8"))


def test_all_are_here():
    assert sorted(path.stem for path in build.sources()) == sorted(NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_source_makes(name):
    written = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == build.notebook(cells_of(name)), "run python experiments/colab/build.py"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_at_most_ten_cells_of_which_the_first_code_installs(name):
    cells = cells_of(name)
    assert len(cells) <= 10
    code = [cell.source for cell in cells if cell.kind == "code"]
    assert cells[0].kind == "markdown" and 'find_spec("jgpt") is None' in code[0]
    assert code[0] == next(c.source for c in cells_of("quickstart") if c.kind == "code")
    assert all(json.loads(build.notebook(cells))["cells"][i]["source"] for i in range(len(cells)))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_valid_notebook(name):
    nbformat = pytest.importorskip("nbformat", reason="checks the format of notebooks")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


def test_percent_format_is_read_whole_or_refused():
    text = "# %% [markdown]\n# # Title\n#\n# two\n# words\n\n# %%\nx = 1\n\n\ny = '# %%'\n"
    assert build.read_cells(text) == [
        build.Cell("markdown", "# Title\n\ntwo\nwords"),
        build.Cell("code", "x = 1\n\n\ny = '# %%'"),
    ]
    with pytest.raises(ValueError, match="begins with"):
        build.read_cells("x = 1\n# %%\ny = 2\n")
    with pytest.raises(ValueError, match="no comment"):
        build.read_cells("# %% [markdown]\nwords\n")


def test_a_config_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no config 'lost'.*dense_small"):
        notebook.settings("lost")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The folder that the notebooks run in, as they would on Colab: one for all."""
    return tmp_path_factory.mktemp("room")


@pytest.fixture
def in_room(room, monkeypatch):
    """Settings of the same names, of models that train in a moment; one device and no display."""
    plain, make_mesh = notebook.settings, sharding.make_mesh

    def tiny(name, changes=None):
        settings = plain(name, changes)
        if name in ("moe_small", "dense_small", "lora_small"):
            own = MODEL if name != "lora_small" else {}
            settings.update_from_flattened_dict(RUN | own | {"data.cache": str(room / "cache")})
        if name == "moe_small":
            settings.update_from_flattened_dict(EXPERTS)
        return settings

    monkeypatch.setattr(notebook, "settings", tiny)
    monkeypatch.setattr(sharding, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.chdir(room)
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        yield room


def execute(name):
    """(names at the end, what was printed, figures drawn) of all code cells, one by one."""
    import matplotlib.pyplot as plt

    names, figures, printed = {}, 0, io.StringIO()
    plt.close("all")
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(cells_of(name)):
            if cell.kind == "code":
                exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)
                figures += len(plt.get_fignums())
                for figure in map(plt.figure, plt.get_fignums()):
                    figure.canvas.draw()
                plt.close("all")
    return names, printed.getvalue(), figures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*non-interactive")
@pytest.mark.filterwarnings("error:Glyph .* missing from")  # Colab has no Japanese font
class TestExecuted:
    def test_quickstart(self, in_room):
        names, printed, figures = execute("quickstart")
        assert figures == 1 and names["run"].figures["step"] == 4
        assert "temperature 1.0" in printed and re.search("[○×] ", printed)
        assert names["run"].report()._repr_html_().startswith("<iframe")
        with pytest.raises(KeyError, match="no validation figure 'lost'; there are: val"):
            names["run"].curve("lost", "validation")

    def test_moe_routing(self, in_room, monkeypatch):
        monkeypatch.setitem(MODEL, "model.num_layers", 2)
        names, printed, figures = execute("moe_routing")
        assert figures == 2
        assert names["load"].shape[1:] == (2, 4)
        # Each of a token's two experts is counted once in each layer.
        tokens = sum(len(piece) == 1 for text in names["routed"] for piece in text.pieces)
        assert names["counts"].sum((1, 2)).tolist() == [2 * tokens] * 2
        assert "expert 3" in printed
        shown = names["run"].route(["夏 <b>"])[0]
        assert "&lt;" in shown._repr_html_() and "<b>" not in shown._repr_html_()
        assert len(str(shown).splitlines()) == 2

    def test_lora_instructions(self, in_room):
        names, printed, figures = execute("lora_instructions")
        assert figures == 1
        assert printed.count("問い") == len(names["shown"]) > 0
        assert (names["values"][8:] < 1e-5 * names["values"][0]).all()
        assert (in_room / "runs/lora_for_peft/adapter_config.json").is_file()
        assert (in_room / "runs/lora_merged/config.json").is_file()

    def test_qlora(self, in_room):
        names, printed, figures = execute("qlora")
        assert figures == 2
        assert printed.count("問い") == len(names["shown"]) > 0
        size = names["size_in_bytes"]
        assert size(names["packed"]) < size(names["whole"]) == size(names["merged"])
        full, lora, qlora = names["table"]["qlora_65b"]
        assert qlora < lora / 3 < full / 20
        assert (in_room / "runs/qlora_merged/config.json").is_file()
