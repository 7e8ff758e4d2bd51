"""The sections `tokenizer` and `data`: text to tokens, and tokens to batches."""

from dataclasses import dataclass

from jgpt.config.setting import ConfigError, setting


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to token ids and back."""

    kind: str = setting(
        "unigram",
        "unigram, bpe, char (SentencePiece, trained here); word; byte; huggingface (from path)",
        ("unigram", "bpe", "char", "word", "byte", "huggingface"),
    )
    vocab_size: int = setting(8000, "pieces, special tokens included")
    path: str = setting("", "a saved tokenizer (folder, .model or tokenizer.json) to use as it is")
    character_coverage: float = setting(0.9995, "share of characters that get a piece of their own")
    byte_fallback: bool = setting(True, "spell what has no piece as UTF-8 bytes")
    split_digits: bool = setting(True, "one piece per digit")
    split_scripts: bool = setting(
        True, "no piece holds Japanese and punctuation or Latin; off: longer pieces, as in です。"
    )
    normalization: str = setting(
        "nfkc",
        "identity; nfkc, but for what Japanese text needs (compiled into the model)",
        ("identity", "nfkc"),
    )
    word_segmenter: str = setting(
        "whitespace", "word: whitespace; mecab; sudachi", ("whitespace", "mecab", "sudachi")
    )
    train_megabytes: float = setting(10.0, "text from the corpus start that it is trained on")


@dataclass(frozen=True)
class CleaningConfig:
    """Filters over source documents, in this order; each reports how much it removed."""

    normalize: str = setting("nfkc", "none; nfkc (keeps 、。「」～ and the like)", ("none", "nfkc"))
    strip_control: bool = setting(True, "control and zero-width characters")
    strip_aozora: bool = setting(True, "ruby《》 and annotations ［＃］ of Aozora Bunko")
    drop_boilerplate: bool = setting(False, "navigation, copyright and cookie lines of web pages")
    drop_repeated_lines: bool = setting(False, "a line that the document already had")
    min_characters: int = setting(1, "shorter documents are removed")
    max_characters: int = setting(0, "longer ones are cut at sentence ends; 0 for never")
    min_japanese_ratio: float = setting(0.0, "least share of kana and kanji among letters")
    min_kana_ratio: float = setting(0.0, "least share of kana (tells Japanese from Chinese)")
    exact_dedup: bool = setting(False, "documents with the same text after the steps above")
    minhash_threshold: float = setting(0.0, "near-duplicates above this Jaccard similarity; 0: off")


@dataclass(frozen=True)
class ChatConfig:
    """Conversations (sources of kind chat and microworld_chat)."""

    template: str = setting(
        "jgpt",
        "jgpt (for tokenizers trained here); chatml; llama2; llama3; gemma; mistral; alpaca_ja; or "
        "a .jinja file, or a model folder that has one",
    )
    learn: str = setting(
        "replies",
        "tokens that count: replies (what the assistant wrote); last (its last reply); all",
        ("replies", "last", "all"),
    )
    overlong: str = setting(
        "cut",
        "conversations longer than a row: cut (oldest exchanges, then prompt, then reply); error",
        ("cut", "error"),
    )
    checked: int = setting(64, "held-out questions that are asked and checked at the end")


@dataclass(frozen=True)
class LabelsConfig:
    """Labelled records (sources of kind labels and microworld_labels)."""

    text: str = setting("text", "field of the text")
    pair: str = setting("", "field of a second text; '' where there is none")
    label: str = setting("label", "field of the label")
    classes: tuple[str, ...] = setting((), "names of the classes; () where labels are numbers")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    sources: str = setting(
        "microworld",
        "comma-separated KIND:PATH@WEIGHT; kind: microworld, text, jsonl, parquet, array_record, "
        "huggingface, chat, labels, class_texts, microworld_chat or microworld_labels; $VARIABLES "
        "and globs are expanded, the kind may be left to the ending",
    )
    text_field: str = setting("text", "field of jsonl, parquet, array_record, huggingface records")
    text_documents: str = setting(
        "file",
        "text: a document is a whole file, or each block between blank lines",
        ("file", "block"),
    )
    split: str = setting("train", "huggingface: the split to stream")
    subset: str = setting("", "huggingface: the dataset's configuration name, such as ja")
    microworld_documents: int = setting(200_000, "microworld: documents before it repeats")
    cache: str = setting("", "folder of caches; empty for ~/.cache/jgpt ($JGPT_CACHE)")
    cleaning: CleaningConfig = setting(CleaningConfig, "filters over documents")
    chat: ChatConfig = setting(ChatConfig, "conversations")
    labels: LabelsConfig = setting(LabelsConfig, "labelled records")
    class_weight: float = setting(
        1.0, "sources of kind class_texts: lambda, what a token of theirs weighs in the loss"
    )
    max_bad_records: int = setting(100, "unreadable records (UTF-8, JSON) before the run stops")
    sequence_length: int = setting(256, "tokens per row")
    virtual_tokens: int = setting(
        0, "ids below 0 in front of every document; training sets them as peft.prompt says"
    )
    batch_size: int = setting(16, "rows per step, over all processes")
    packing: str = setting(
        "best_fit",
        "best_fit (whole documents where they fit); split (concatenate and cut); none (one a row)",
        ("best_fit", "split", "none"),
    )
    pack_open_rows: int = setting(64, "best_fit: documents for so many rows wait to be chosen from")
    shuffle: bool = setting(True, "a new order every epoch")
    shuffle_buffer: int = setting(2048, "documents in memory, for sources without an index")
    seed: int = setting(0, "of shuffling")
    epochs: int = setting(0, "0 for as many as the steps need")
    virtual_shards: int = setting(64, "fixed streams that processes share out among themselves")
    validation_fraction: float = setting(0.01, "of documents, by hash of their text")
    validation_documents: int = setting(512, "at most this many of them are scored")
    workers: int = setting(0, "processes that read and pack; 0 for a thread of this one")
    prefetch: int = setting(8, "batches made ahead")

    def __post_init__(self):
        for name in (
            "sequence_length", "batch_size", "virtual_shards", "prefetch", "pack_open_rows",
            "shuffle_buffer", "microworld_documents",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.virtual_tokens <= max(self.sequence_length - 2, 0):
            raise ConfigError(
                f"data.sequence_length ({self.sequence_length}) has no room for text after "
                f"{self.virtual_tokens} virtual tokens (peft.prompt.length); raise it"
            )
        if self.class_weight <= 0:
            raise ConfigError(
                f"data.class_weight is {self.class_weight}; it must be above 0, or leave the "
                "class_texts out of data.sources"
            )
        if not self.sources.strip():
            raise ConfigError("data.sources is empty; name a source such as 'microworld'")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError("data.validation_fraction must lie in [0, 1)")
        small, large = sorted((self.batch_size, self.virtual_shards))
        if large % small:
            raise ConfigError(
                f"data.batch_size ({self.batch_size}) and data.virtual_shards "
                f"({self.virtual_shards}) must divide one another; choose a power of two"
            )
