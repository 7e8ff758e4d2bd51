"""Conjugation of Japanese verbs, adjectives and the copula.

A word is given by its dictionary form; its class (五段, 一段, サ変, カ変, い-adjective, or noun and
な-adjective with the copula だ) follows from its ending and from the list of 一段 verbs below.
A form is a name such as ``te``, or a chain of derivations ended by a form such as
``want+past`` (読みたかった) or ``can+negative`` (読めない): each derivation yields a new word.

The forms of ``FINAL_FORMS`` end a sentence and follow the register (行った, 行きました); all
others are the same in both registers.
"""
# ruff: noqa: E501, SIM905  (tables and word lists stay on one line, to be read)

from __future__ import annotations

from functools import cache

PLAIN, POLITE = 0, 1
REGISTERS = (PLAIN, POLITE)

# The rows of the kana table a 五段 ending moves through: あ, い, え, お; then て and た.
_GODAN = {
    "う": ("わ", "い", "え", "お", "って", "った"),
    "つ": ("た", "ち", "て", "と", "って", "った"),
    "る": ("ら", "り", "れ", "ろ", "って", "った"),
    "む": ("ま", "み", "め", "も", "んで", "んだ"),
    "ぶ": ("ば", "び", "べ", "ぼ", "んで", "んだ"),
    "ぬ": ("な", "に", "ね", "の", "んで", "んだ"),
    "く": ("か", "き", "け", "こ", "いて", "いた"),
    "ぐ": ("が", "ぎ", "げ", "ご", "いで", "いだ"),
    "す": ("さ", "し", "せ", "そ", "して", "した"),
}

# Verbs in る are 五段 unless named here or ending in れる or せる: the ending alone does not tell
# 着る from 切る.
_ICHIDAN = frozenset(
    """
    食べる 見る 起きる 寝る 着る 出る 開ける 閉める 届ける 見つける 教える 覚える
    出かける 助ける 育てる 調べる 数える 考える 答える 伝える 迎える 植える
    片付ける 続ける 始める 集める 決める 止める 借りる 降りる 落ちる 生きる 増える
    冷える 消える 聞こえる 見える 燃える 生える 混ぜる 焼ける 溶ける 負ける 抜ける
    抱える 預ける 分ける 掛ける かける つける あげる いる みる できる もらえる
    訪ねる 尋ねる 重ねる 眺める 温める 暖める 勤める ためる やめる 辞める 支える
    加える 添える 捨てる 建てる 立てる 慌てる 捕まえる 貯める 褒める ほめる すぎる
    過ぎる 信じる 感じる 閉じる 上げる 下げる 投げる 逃げる 曲げる 広げる 仕上げる
    見上げる 拾い上げる 確かめる 受ける 見分ける 足りる 浴びる 伸びる 似る 煮る
    飽きる 冷める 着替える 越える 超える 変える 替える 乗り換える 備える 並べる
    比べる 述べる 食べ終える 終える 茹でる 炒める つかまえる 駆けつける 片づける
    あきらめる
    """.split()
)
# In kana, いる and みる are 一段 only as a verb of their own or after て: はいる and まいる are not.
_ICHIDAN_ENDINGS = (
    *sorted(_ICHIDAN - {"いる", "みる"}),
    *("せる", "れる", "ている", "でいる", "がいる", "にいる", "てみる", "でみる", "をみる"),
)

# Derivations: the form of the word they attach to, and the word that they add.
_DERIVATIONS = {
    "want": ("stem", "たい"),
    "progressive": ("te", "いる"),
    "try": ("te", "みる"),
    "regret": ("te", "しまう"),
    "favour": ("te", "くれる"),
    "receive": ("te", "もらう"),
    "offer": ("te", "あげる"),
    "prepare": ("te", "おく"),
    "come": ("te", "くる"),
    "go": ("te", "いく"),
    "begin": ("stem", "始める"),
    "finish": ("stem", "終わる"),
    "excess": ("stem", "すぎる"),
    "easy": ("stem", "やすい"),
    "hard": ("stem", "にくい"),
    "become": ("adverb", "なる"),
    "must": ("negative_ba", "なる"),
}

FINAL_FORMS = frozenset(
    "nonpast past negative past_negative volitional probably explain explain_past question "
    "question_past ask ask_past please invite".split()
)
PLAIN_FORMS = frozenset(
    "base ta nai nakatta te nakute naide stem ba negative_ba tara tari nagara adverb imperative "
    "request attributive".split()
)


def word_class(word: str) -> str:
    """The class of a word in dictionary form: godan, ichidan, suru, kuru, adjective or copula."""
    if word.endswith("だ"):
        return "copula"
    if word.endswith("い"):
        return "adjective"
    if word.endswith("する"):
        return "suru"
    if word.endswith(("来る", "てくる", "でくる")) or word == "くる":
        return "kuru"
    if word.endswith(_ICHIDAN_ENDINGS) or word in _ICHIDAN:
        return "ichidan"
    if word[-1] in _GODAN:
        return "godan"
    raise ValueError(f"word {word!r}: not a dictionary form; give a verb, い-adjective or X+だ")


def _godan(word: str) -> dict[str, str]:
    head, a, i, e, o, te, ta = (word[:-1], *_GODAN[word[-1]])
    if word.endswith(("行く", "いく")):
        te, ta = "って", "った"
    negative = head[: -len("あ")] if word.endswith("ある") else head + a
    return {
        "negative": negative,
        "stem": head + i,
        "te": head + te,
        "ta": head + ta,
        "ba": head + e + "ば",
        "volitional": head + o + "う",
        "imperative": head + e,
        "can": head + e + "る",
        "passive": head + a + "れる",
        "causative": head + a + "せる",
    }


def _ichidan(word: str) -> dict[str, str]:
    head = word[:-1]
    return {
        "negative": head,
        "stem": head,
        "te": head + "て",
        "ta": head + "た",
        "ba": head + "れば",
        "volitional": head + "よう",
        "imperative": head + "ろ",
        "can": head + "られる",
        "passive": head + "られる",
        "causative": head + "させる",
    }


def _suru(word: str) -> dict[str, str]:
    head = word[:-2]
    return {
        "negative": head + "し",
        "stem": head + "し",
        "te": head + "して",
        "ta": head + "した",
        "ba": head + "すれば",
        "volitional": head + "しよう",
        "imperative": head + "しろ",
        "can": head + "できる",
        "passive": head + "される",
        "causative": head + "させる",
    }


def _kuru(word: str) -> dict[str, str]:
    # In kanji the vowel of 来 changes unseen (きて, こない); in kana it must be written.
    head = word[:-1] if word.endswith("来る") else None
    ki = head or word[:-2] + "き"
    ko = head or word[:-2] + "こ"
    return {
        "negative": ko,
        "stem": ki,
        "te": ki + "て",
        "ta": ki + "た",
        "ba": word[:-1] + "れば",
        "volitional": ko + "よう",
        "imperative": ko + "い",
        "can": ko + "られる",
        "passive": ko + "られる",
        "causative": ko + "させる",
    }


_VERB_STEMS = {"godan": _godan, "ichidan": _ichidan, "suru": _suru, "kuru": _kuru}


def _verb_form(word: str, kind: str, form: str, register: int) -> str:
    stems = _VERB_STEMS[kind](word)
    stem, negative = stems["stem"], stems["negative"]
    if form in FINAL_FORMS:
        plain = {
            "nonpast": word,
            "past": stems["ta"],
            "negative": negative + "ない",
            "past_negative": negative + "なかった",
            "volitional": stems["volitional"],
            "probably": word + "だろう",
            "explain": word + "のだ",
            "explain_past": stems["ta"] + "のだ",
            "question": word + "か",
            "question_past": stems["ta"] + "か",
            "ask": word + "の",
            "ask_past": stems["ta"] + "の",
            "please": stems["te"],
            "invite": stems["volitional"] + "よ",
        }
        polite = {
            "nonpast": stem + "ます",
            "past": stem + "ました",
            "negative": stem + "ません",
            "past_negative": stem + "ませんでした",
            "volitional": stem + "ましょう",
            "probably": word + "でしょう",
            "explain": word + "のです",
            "explain_past": stems["ta"] + "のです",
            "question": stem + "ますか",
            "question_past": stem + "ましたか",
            "ask": stem + "ますか",
            "ask_past": stem + "ましたか",
            "please": stems["te"] + "ください",
            "invite": stem + "ませんか",
        }
        return (plain, polite)[register][form]
    if form in stems and form != "negative":
        return stems[form]
    return {
        "base": word,
        "attributive": word,
        "nai": negative + "ない",
        "nakatta": negative + "なかった",
        "nakute": negative + "なくて",
        "naide": negative + "ないで",
        "negative_ba": negative + "なければ",
        "tara": stems["ta"] + "ら",
        "tari": stems["ta"] + "り",
        "nagara": stem + "ながら",
        "request": stems["te"] + "ください",
    }[form]


def _adjective_form(word: str, form: str, register: int) -> str:
    head = word[:-1]
    if word.endswith("いい"):
        head = head[:-1] + "よ"
    plain = {
        "nonpast": word,
        "past": head + "かった",
        "negative": head + "くない",
        "past_negative": head + "くなかった",
        "probably": word + "だろう",
        "explain": word + "のだ",
        "explain_past": head + "かったのだ",
        "question": word + "か",
        "question_past": head + "かったか",
        "ask": word + "の",
        "ask_past": head + "かったの",
    }
    if form in plain:
        polite = {
            "nonpast": word + "です",
            "past": head + "かったです",
            "negative": head + "くありません",
            "past_negative": head + "くありませんでした",
            "probably": word + "でしょう",
            "explain": word + "のです",
            "explain_past": head + "かったのです",
            "question": word + "ですか",
            "question_past": head + "かったですか",
            "ask": word + "ですか",
            "ask_past": head + "かったですか",
        }
        return (plain, polite)[register][form]
    return {
        "base": word,
        "attributive": word,
        "ta": head + "かった",
        "nai": head + "くない",
        "nakatta": head + "くなかった",
        "te": head + "くて",
        "stem": head,
        "adverb": head + "く",
        "ba": head + "ければ",
        "negative_ba": head + "くなければ",
        "tara": head + "かったら",
        "tari": head + "かったり",
    }[form]


def _copula_form(word: str, form: str, register: int) -> str:
    head = word[:-1]
    plain = {
        "nonpast": "だ",
        "past": "だった",
        "negative": "ではない",
        "past_negative": "ではなかった",
        "probably": "だろう",
        "explain": "なのだ",
        "explain_past": "だったのだ",
        "question": "か",
        "question_past": "だったか",
        "ask": "なの",
        "ask_past": "だったの",
    }
    if form in plain:
        polite = {
            "nonpast": "です",
            "past": "でした",
            "negative": "ではありません",
            "past_negative": "ではありませんでした",
            "probably": "でしょう",
            "explain": "なのです",
            "explain_past": "だったのです",
            "question": "ですか",
            "question_past": "でしたか",
            "ask": "ですか",
            "ask_past": "でしたか",
        }
        return head + (plain, polite)[register][form]
    return (
        head
        + {
            "base": "だ",
            "attributive": "な",
            "ta": "だった",
            "nai": "ではない",
            "nakatta": "ではなかった",
            "te": "で",
            "stem": "",
            "adverb": "に",
            "ba": "ならば",
            "negative_ba": "でなければ",
            "tara": "だったら",
            "tari": "だったり",
        }[form]
    )


def derive(word: str, derivation: str) -> str:
    """The word that a derivation such as ``want`` or ``can`` makes (読む, can: 読める)."""
    if derivation in ("can", "passive", "causative"):
        kind = word_class(word)
        if kind not in _VERB_STEMS:
            raise ValueError(f"form {derivation!r}: {word!r} is no verb")
        return _VERB_STEMS[kind](word)[derivation]
    if derivation not in _DERIVATIONS:
        raise ValueError(f"form {derivation!r}: not a derivation; one of {sorted(_DERIVATIONS)}")
    base_form, added = _DERIVATIONS[derivation]
    if base_form in ("stem", "te") and word_class(word) not in _VERB_STEMS:
        raise ValueError(f"form {derivation!r}: {word!r} is no verb")
    return conjugate(word, base_form) + added


@cache
def conjugate(word: str, form: str, register: int = PLAIN) -> str:
    """Conjugates a word or a phrase that ends in one (本を読む).

    Args:
      word: dictionary form; nouns and な-adjectives carry だ (元気だ).
      form: ``nonpast``, ``te``, ... or a chain of derivations and a form (``want+past``).
      register: PLAIN or POLITE; only the forms of ``FINAL_FORMS`` depend on it.

    Raises:
      ValueError: the word is no dictionary form, or the form does not exist.
    """
    derivation, chained, rest = form.partition("+")
    if chained:
        derived = derive(word, derivation)
        if derivation == "must":  # なければならない has no positive
            rest = {"nonpast": "negative", "past": "past_negative"}.get(rest, rest)
        if derivation in ("can", "passive", "causative"):
            return _verb_form(derived, "ichidan", rest, register)
        return conjugate(derived, rest, register)
    kind = word_class(word)
    if form not in FINAL_FORMS and form not in PLAIN_FORMS:
        raise ValueError(f"form {form!r}: unknown; one of {sorted(FINAL_FORMS | PLAIN_FORMS)}")
    try:
        if kind == "adjective":
            return _adjective_form(word, form, register)
        if kind == "copula":
            return _copula_form(word, form, register)
        return _verb_form(word, kind, form, register)
    except KeyError:
        raise ValueError(f"form {form!r}: {word!r} ({kind}) does not have it") from None


class Forms(dict):
    """The forms of one phrase in one register, each conjugated when first asked for.

    ``"{act[te]}".format(act=Forms("本を読む", POLITE))`` is 本を読んで.
    """

    __slots__ = ("phrase", "register")

    def __init__(self, phrase: str, register: int):
        super().__init__()
        self.phrase = phrase
        self.register = register

    def __missing__(self, form: str) -> str:
        value = self[form] = conjugate(self.phrase, form, self.register)
        return value
