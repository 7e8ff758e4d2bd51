"""Chat templates that are known by name, as data: one Jinja program each, the stop they end in.

Each writes what the public models of its family were trained on. `{% generation %}` says what the
assistant writes: the reply and the token that ends its turn. A template whose control tokens the
tokenizer lacks is refused: spelled out as text they would be no control tokens.
"""

import dataclasses
from pathlib import Path

from jgpt.config import ConfigError
from jgpt.tokenizers import chat
from jgpt.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Format:
    """
    Attributes:
        template: the Jinja program.
        tokens: control tokens that it writes, by name, beside bos and eos.
        end: the token that ends the assistant's turn; "" for eos.
    """

    template: str
    tokens: tuple[str, ...] = ()
    end: str = ""


_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_LLAMA2 = """\
{%- set first = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set first.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + first.system + message.content.strip() + ' [/INST]' }}
        {%- set first.system = '' %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""

_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_GEMMA = """\
{{- bos_token }}
{%- set first = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set first.system = message.content + '\\n\\n' %}
    {%- elif message.role == 'assistant' %}
        {{- '<start_of_turn>model\\n' }}
        {%- generation %}{{ message.content | trim + '<end_of_turn>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- elif message.role == 'user' %}
        {{- '<start_of_turn>user\\n' + first.system + message.content | trim + '<end_of_turn>\\n' }}
        {%- set first.system = '' %}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_MISTRAL = """\
{{- bos_token }}
{%- set first = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set first.system = message.content + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + first.system + message.content + '[/INST]' }}
        {%- set first.system = '' %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""

_ALPACA_JA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + '\\n\\n' }}
    {%- elif message.role == 'user' %}
        {%- if message.context %}
            {{- '以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。' }}
            {{- '要求を適切に満たす応答を書きなさい。\\n\\n### 指示:\\n' + message.content }}
            {{- '\\n\\n### 入力:\\n' + message.context + '\\n\\n### 応答:\\n' }}
        {%- else %}
            {{- '以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\\n\\n' }}
            {{- '### 指示:\\n' + message.content + '\\n\\n### 応答:\\n' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""

FORMATS: dict[str, Format] = {
    "jgpt": Format(
        "{{- bos_token }}" + chat.DEFAULT_TEMPLATE,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
    ),
    "chatml": Format(_CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama2": Format(_LLAMA2),
    "llama3": Format(
        _LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"
    ),
    "gemma": Format(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "mistral": Format(_MISTRAL),
    "alpaca_ja": Format(_ALPACA_JA),
}
"""Sources: the model cards and `tokenizer_config.json` of Qwen (ChatML), Llama 2 and 3, Gemma 2,
Mistral 7B Instruct v0.1 to v0.3 (one system text before the first question), and Japanese Alpaca
(kunishou; the Japanese prompt of Stanford Alpaca)."""


def open_template(name: str, tokenizer: Tokenizer) -> chat.ChatTemplate:
    """The template of `data.chat.template`: a name of `FORMATS`, a `.jinja` file, a model's folder.

    Raises:
        ConfigError: there is none, it is broken, or the tokenizer lacks its control tokens.
    """
    names = token_names(tokenizer)
    if name in FORMATS:
        lacking = [t for t in FORMATS[name].tokens if t not in tokenizer.special_names]
        if lacking:
            raise ConfigError(
                f"data.chat.template={name!r} needs the control tokens {', '.join(lacking)}, which "
                "this tokenizer lacks; take the template of its family, or 'alpaca_ja', which "
                "needs none"
            )
        return chat.ChatTemplate(FORMATS[name].template, names)
    path = Path(name).expanduser()
    if path.is_dir():
        return chat.load(path)
    if path.is_file():
        return chat.ChatTemplate(path.read_text(encoding="utf-8"), names)
    raise ConfigError(
        f"data.chat.template is {name!r}; choose one of {', '.join(FORMATS)}, a .jinja file, or a "
        "folder with a chat template"
    )


def token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... as the tokenizer spells them: the variables of a template."""
    spelled = {token: name for name, token in reversed(tokenizer.special_names.items())}
    ids = {kind: getattr(tokenizer, f"{kind}_id") for kind in ("bos", "eos", "pad", "unk")}
    names = {f"{kind}_token": spelled[i] for kind, i in ids.items() if i in spelled}
    if tokenizer.bos_id == tokenizer.eos_id:  # it has no bos of its own
        names["bos_token"] = ""
    return names


def stop_id(template: chat.ChatTemplate, tokenizer: Tokenizer) -> int:
    """The token that ends the assistant's turn, found in a turn; eos where there is none."""
    probe = [{"role": "user", "content": "あ"}, {"role": "assistant", "content": "い"}]
    encoded = template.encode_for_training(tokenizer, probe)
    written = [i for i, m in zip(encoded.ids, encoded.assistant_mask, strict=True) if m]
    special = set(tokenizer.special_tokens.values())
    return written[-1] if written[-1] in special else tokenizer.eos_id
