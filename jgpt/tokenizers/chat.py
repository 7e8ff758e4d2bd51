"""Chat templates: messages to one text, and to ids in which no message can forge a control token.

A template is a Jinja program that a model's folder brings along (`chat_template` of its
`tokenizer_config.json`, or `chat_template.jinja`). It runs in Jinja's immutable sandbox, with the
settings and functions that Hugging Face's templates count on:
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

import bisect
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jgpt.config import ConfigError
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers.base import Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
DEFAULT_TEMPLATE = """\
{%- set markers = {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'} %}
{%- for message in messages %}
    {%- if message.role not in markers %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {{- markers[message.role] }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""For the tokenizers that are trained here, whose special tokens these are."""

_WRITTEN, _WRITTEN_END, _QUOTED, _QUOTED_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Noncharacters of Unicode, never part of a text: around what the assistant wrote, and around names
of special tokens that stand in a message."""
_MARKS = re.compile(f"[{_WRITTEN}-{_QUOTED_END}]")


class ChatError(ValueError):
    """Messages that a template refuses, or a template that cannot do what is asked of it."""


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """
    Attributes:
        ids: the tokens of the chat.
        assistant_mask: for each token whether the assistant wrote it (the end-of-turn token of its
            turns included, where the template says so): the loss mask of supervised fine-tuning.
    """

    ids: list[int]
    assistant_mask: list[bool]


class ChatTemplate:
    """A compiled template and the names of the special tokens that it may use."""

    def __init__(self, source: str, token_names: Mapping[str, str] | None = None):
        """
        Args:
            source: the Jinja program.
            token_names: variables such as `bos_token`.

        Raises:
            ConfigError: the program is broken.
        """
        self.source = source
        self._token_names = dict(token_names or {})
        self._template = _compiled(source)
        self.marks_assistant = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The chat as text.

        Args:
            messages: of `{"role": ..., "content": ...}` and what else the template knows; JSON
                values. Fields that are None count as missing.
            add_generation_prompt: end with the opening of the assistant's turn.
            variables: more for the template, such as `tools` or `enable_thinking`.

        Raises:
            ChatError: the template refuses the messages, or a value is of no JSON type.
        """
        return _MARKS.sub("", self._render(messages, add_generation_prompt, variables, None, ()))

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        trusted_roles: Collection[str] = (),
        **variables: Any,
    ) -> list[int]:
        """The chat as ids: special tokens where the template writes them, and only there.

        Names of special tokens inside messages are encoded as ordinary text.

        Args:
            trusted_roles: roles whose messages may hold special tokens (`<think>` in an
                assistant's recorded answer).

        Raises:
            ChatError: as `render`.
        """
        quote = _quoting(tuple(tokenizer.special_names))
        text = self._render(messages, add_generation_prompt, variables, quote, trusted_roles)
        parts, _ = _parts(text, tokenizer.special_names)
        return tokenizer.encode_parts(parts)

    def encode_for_training(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        trusted_roles: Collection[str] = (),
        **variables: Any,
    ) -> EncodedChat:
        """`encode`, and which tokens the assistant wrote.

        A template without `{% generation %}` is rendered turn by turn to find out: it is what an
        assistant's message adds to the generation prompt.

        Raises:
            ChatError: as `render`, the assistant wrote nothing, or such a template changes earlier
                turns later on.
        """
        quote = _quoting(tuple(tokenizer.special_names))
        render = functools.partial(
            self._render, variables=variables, quote=quote, trusted_roles=trusted_roles
        )
        text = render(messages, False)
        if not self.marks_assistant:
            text = _with_marks(text, list(_turns(messages, render)))
        parts, spans = _parts(text, tokenizer.special_names)
        ids = tokenizer.encode_parts(parts)
        mask = _mask(tokenizer, parts, spans, ids)
        if not any(mask):
            raise ChatError("nothing to train on: the chat has no text of the assistant's")
        return EncodedChat(ids, mask)

    def _render(self, messages, add_generation_prompt, variables, quote, trusted_roles) -> str:
        if not messages:
            raise ChatError("a chat needs at least one message")
        prepared = []
        for message in messages:
            kept = {name: value for name, value in message.items() if value is not None}
            trusted = kept.get("role") in trusted_roles
            prepared.append(_plain(kept, None if trusted else quote))
        values = {"tools": None, "documents": None, **variables}
        try:
            return self._template.render(
                **self._token_names,
                **{name: _plain(value, quote) for name, value in values.items()},
                messages=prepared,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ChatError(f"the chat template refuses the messages: {error}") from error


def load(folder: Path | str, name: str = "default") -> ChatTemplate:
    """The chat template of a model's folder.

    `chat_template.jinja` comes before `tokenizer_config.json`, whose `chat_template` is one
    template or a list of named ones.

    Args:
        name: of a folder with several (`tool_use`, `rag`).

    Raises:
        ConfigError: there is none of this name, or it is broken.
    """
    folder = Path(folder)
    config = folder_settings.read(folder).config
    written = config.get("chat_template") or {}
    if isinstance(written, str):
        written = {"default": written}
    elif isinstance(written, list):
        written = {entry["name"]: entry["template"] for entry in written}
    files = {path.stem: path for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files["default"] = folder / TEMPLATE_FILE
    found = {**written, **{stem: path.read_text("utf-8") for stem, path in files.items()}}
    if name not in found:
        others = f"; it has {', '.join(sorted(found))}" if found else ""
        raise ConfigError(f"{str(folder)!r} has no chat template called {name}{others}")
    return ChatTemplate(found[name], folder_settings.token_names(folder))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_WRITTEN}{caller()}{_WRITTEN_END}"


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter writes HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment


def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise ConfigError(f"the chat template is broken ({error})") from error


@functools.lru_cache(maxsize=16)
def _quoting(names: tuple[str, ...]) -> re.Pattern | None:
    return re.compile(_alternatives(names)) if names else None


def _alternatives(names: Collection[str]) -> str:
    """The longest first: a name may begin with another."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _plain(value: Any, quote: re.Pattern | None) -> Any:
    """A copy in JSON's types, for the sandbox; names of special tokens between marks."""
    if isinstance(value, str):
        text = _MARKS.sub("", value)
        return quote.sub(f"{_QUOTED}\\g<0>{_QUOTED_END}", text) if quote else text
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(item, quote) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, quote) for item in value]
    raise ChatError(f"a chat may hold JSON values only, not {type(value).__name__}")


def _turns(
    messages: Sequence[Mapping[str, Any]], render: Callable[[Sequence[Any], bool], str]
) -> Iterator[tuple[str, str]]:
    """The text before and the text after each of the assistant's messages."""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise ChatError("a chat that the assistant begins has no prompt to train on")
        yield render(messages[:i], True), render(messages[: i + 1], False)


def _with_marks(text: str, turns: Sequence[tuple[str, str]]) -> str:
    """`text` with marks around what each turn's second text adds to the first."""
    for before, after in reversed(turns):
        if not (after.startswith(before) and text.startswith(after)):
            raise ChatError(
                "what the assistant wrote cannot be found: the chat template changes earlier "
                "turns later on, or its generation prompt does not begin a turn; add "
                "{% generation %} to the template, or train on single turns"
            )
        start, end = len(before), len(after)
        text = f"{text[:start]}{_WRITTEN}{text[start:end]}{_WRITTEN_END}{text[end:]}"
    return text


def _parts(
    text: str, special: Mapping[str, int]
) -> tuple[list[str | int], list[tuple[list[str | int], list[str | int]]]]:
    """A rendered chat as texts and special tokens, and what stands before the begin and the end of
    each of the assistant's spans."""
    names = _alternatives(special) or "(?!)"
    pattern = re.compile(f"{_QUOTED}({names}){_QUOTED_END}|([{_WRITTEN}-{_QUOTED_END}])|({names})")
    parts: list[str | int] = [""]
    spans, begin = [], None
    position = 0
    for match in [*pattern.finditer(text), None]:
        plain = text[position : match.start() if match else None]
        quoted, mark, name = match.groups() if match else ("", None, None)
        parts[-1] += plain + (quoted or "")
        if name:
            parts += [special[name], ""]
        elif mark == _WRITTEN:
            begin = list(parts)
        elif mark == _WRITTEN_END and begin is not None:
            spans.append((begin, list(parts)))
        position = match.end() if match else position
    return parts, spans


def _mask(
    tokenizer: Tokenizer,
    parts: Sequence[str | int],
    spans: Sequence[tuple[list[str | int], list[str | int]]],
    ids: Sequence[int],
) -> list[bool]:
    """Which tokens have something of a span.

    Places are counted in the bytes of the tokens, a special token as one: the tokens before a place
    may be others when what follows is not there, but their bytes are the same. A place right after
    a special token is known without that, which keeps long chats fast.
    """
    ends = _ends(tokenizer, ids)
    written = {part for part in parts if isinstance(part, int)}
    specials = [i for i, token in enumerate(ids) if token in written]
    countable = len(specials) == sum(isinstance(part, int) for part in parts)

    def place(before: list[str | int]) -> int:
        if countable and before[-1] == "" and len(before) > 1:
            return ends[specials[sum(isinstance(part, int) for part in before) - 1] + 1]
        return _ends(tokenizer, tokenizer.encode_parts(before))[-1]

    mask = [False] * len(ids)
    for begin, end in spans:
        first, last = place(begin), place(end)
        for i in range(bisect.bisect_right(ends, first) - 1, len(ids)):
            if ends[i] >= last:
                break
            mask[i] = True
    return mask


def _ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Bytes before each token, and all of them."""
    ends = [0]
    for token in ids:
        ends.append(ends[-1] + (len(tokenizer.token_bytes(token)) or 1))
    return ends
