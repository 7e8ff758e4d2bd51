"""DeBERTa-v2 in the form of ku-nlp's Japanese models: no positions but those of the scores."""

from jgpt.interop.description import Always, Family, Field, linear, norm, only, tensor
from jgpt.interop.encoders import MASKED, NO_LABELS, PLAIN, TOKENS, Disentangled, Heads, sequence
from jgpt.interop.families.bert import HEAD_TENSORS, SIZES, STYLE, layers

DEBERTA_V2 = Family(
    name="deberta-v2",
    architecture="DebertaV2ForMaskedLM",
    settings=(
        *SIZES,
        Field("norm_epsilon", "layer_norm_eps", 1e-7),
        Field("token_types", "type_vocab_size", 0),
        Always(STYLE | {"position": "disentangled"}),
        Disentangled(),
        only("relative_attention", True, default=False),
        only("norm_rel_ebd", "layer_norm", default="none"),
        only("share_att_key", True, default=False),
        only("position_biased_input", False, default=True),
        only("conv_kernel_size", 0),
        only("pooler_hidden_act", "gelu"),
        only("legacy", True),
        Heads(
            (
                ("DebertaV2ForMaskedLM", MASKED),
                ("DebertaV2Model", PLAIN | NO_LABELS),
                ("DebertaV2ForSequenceClassification", sequence("cls", "gelu")),
                ("DebertaV2ForTokenClassification", TOKENS),
            )
        ),
    ),
    tensors=(
        tensor("deberta.embeddings.word_embeddings.weight", "embedding/table"),
        tensor("deberta.embeddings.token_type_embeddings.weight", "token_type/table"),
        *norm("deberta.embeddings.LayerNorm", "embedding_norm"),
        tensor("deberta.encoder.rel_embeddings.weight", "relative_embedding/table"),
        *norm("deberta.encoder.LayerNorm", "relative_norm"),
        *layers("deberta", "query_proj", "key_proj", "value_proj"),
        *linear("pooler.dense", "pooler/dense"),
        *HEAD_TENSORS,
    ),
    ignored=(r"embeddings\.position_ids$", r"^cls\.predictions\.decoder\.bias$"),
    optional_prefix="deberta.",
)
