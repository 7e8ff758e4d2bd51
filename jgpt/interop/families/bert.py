"""BERT (tohoku-nlp, sentence encoders): post norms, learned positions, token types."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, only, tensor
from jgpt.interop.encoders import MASKED, NO_LABELS, PLAIN, TOKENS, Heads, sequence
from jgpt.interop.families.gpt2 import BIASED_GELU, GELUS

SIZES = (
    Field("vocab_size", "vocab_size"),
    Field("num_layers", "num_hidden_layers"),
    Field("hidden_size", "hidden_size"),
    Field("num_heads", "num_attention_heads"),
    Field("intermediate_size", "intermediate_size"),
    Field("max_length", "max_position_embeddings", 512),
    Choice("hidden_act", GELUS, "gelu"),
    Field("tied_embeddings", "tie_word_embeddings", True),
    BIASED_GELU,
)

STYLE = {"attention": "bidirectional", "norm_placement": "post", "embedding_norm": True}


def layers(base: str, query: str, key: str, value: str):
    """Rows of a layer; the three maps have other names in DeBERTa."""
    attention = f"{base}.encoder.layer.{{i}}.attention"
    return (
        *linear(f"{attention}.self.{query}", "layers_{i}/attention/query"),
        *linear(f"{attention}.self.{key}", "layers_{i}/attention/key"),
        *linear(f"{attention}.self.{value}", "layers_{i}/attention/value"),
        *linear(f"{attention}.output.dense", "layers_{i}/attention/output"),
        *norm(f"{attention}.output.LayerNorm", "layers_{i}/attention_post_norm"),
        *linear(f"{base}.encoder.layer.{{i}}.intermediate.dense", "layers_{i}/ffn/up"),
        *linear(f"{base}.encoder.layer.{{i}}.output.dense", "layers_{i}/ffn/down"),
        *norm(f"{base}.encoder.layer.{{i}}.output.LayerNorm", "layers_{i}/ffn_post_norm"),
    )


HEAD_TENSORS = (
    *linear("cls.predictions.transform.dense", "head_transform/dense"),
    *norm("cls.predictions.transform.LayerNorm", "head_transform/norm"),
    tensor("cls.predictions.bias", "head/bias"),
    *linear("cls.predictions.decoder", "head")[:1],
    *linear("classifier", "classifier"),
)

BERT = Family(
    name="bert",
    architecture="BertForMaskedLM",
    settings=(
        *SIZES,
        Field("norm_epsilon", "layer_norm_eps", 1e-12),
        Field("token_types", "type_vocab_size", 2),
        Always(STYLE | {"position": "learned"}),
        only("position_embedding_type", "absolute"),
        only("is_decoder", False),
        only("add_cross_attention", False),
        Heads(
            (
                ("BertForMaskedLM", MASKED),
                ("BertForPreTraining", MASKED | {"pooling": "cls", "pooler": "tanh"}),
                ("BertModel", PLAIN | NO_LABELS | {"pooling": "cls", "pooler": "tanh"}),
                ("BertForSequenceClassification", sequence("cls", "tanh")),
                ("BertForTokenClassification", TOKENS),
            )
        ),
    ),
    tensors=(
        tensor("bert.embeddings.word_embeddings.weight", "embedding/table"),
        tensor("bert.embeddings.position_embeddings.weight", "position/table"),
        tensor("bert.embeddings.token_type_embeddings.weight", "token_type/table"),
        *norm("bert.embeddings.LayerNorm", "embedding_norm"),
        *layers("bert", "query", "key", "value"),
        *linear("bert.pooler.dense", "pooler/dense"),
        *HEAD_TENSORS,
    ),
    # The pooler and next-sentence head that files of masked-language models often still have, and
    # the bias under its second name.
    ignored=(
        r"embeddings\.position_ids$",
        r"^bert\.pooler\.",
        r"^cls\.seq_relationship\.",
        r"^cls\.predictions\.decoder\.bias$",
    ),
    optional_prefix="bert.",
)
