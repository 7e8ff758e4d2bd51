"""Every setting with its default and meaning; other configs change a few lines.

Generated from `jgpt/config/`: `python -m jgpt.config > configs/default.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    # of the run; the workdir is runs/NAME unless --workdir is given
    c.name = "default"

    # architecture
    c.model = ml_collections.ConfigDict()
    # 0: as many as the tokenizer has
    c.model.vocab_size = 0
    # blocks
    c.model.num_layers = 4
    # width D of the residual stream
    c.model.hidden_size = 256
    # query heads
    c.model.num_heads = 4
    # key/value heads; 0 for num_heads, 1 is multi-query
    c.model.num_kv_heads = 0
    # 0 for hidden_size / num_heads
    c.model.head_dim = 0
    # width F of the feed-forward layer
    c.model.intermediate_size = 688
    # longest sequence; rows of a learned position table
    c.model.max_length = 2048
    # encoder-decoder: blocks of the encoder that every decoder block attends to; 0 for none
    c.model.encoder_layers = 0
    # encoder-decoder: the token before the first (T5: pad)
    c.model.decoder_start_id = 0
    # causal; bidirectional; prefix (bidirectional over the first batch['prefix_lengths'])
    c.model.attention = "causal"
    # repeated over the layers: global or local (sliding window)
    c.model.attention_pattern = ("global",)
    # local layers see this many tokens, themselves included
    c.model.window = 0

    # block-sparse pattern of the global layers
    c.model.block_sparse = ml_collections.ConfigDict()
    # tokens per block; 0 switches the pattern off
    c.model.block_sparse.block_size = 0
    # each block sees itself and this many minus one before it
    c.model.block_sparse.num_local_blocks = 4
    # the first blocks, seen by all
    c.model.block_sparse.num_global_blocks = 1
    # also see every stride-th block; 0 for none
    c.model.block_sparse.stride = 0
    # c * tanh(scores / c); 0 for none
    c.model.attention_softcap = 0.0
    # scores are scaled by this times head_dim**-0.5
    c.model.attention_scale = 1.0
    # learn the scale, one per layer, from there
    c.model.learned_attention_scale = False
    # normalise each head's query and key
    c.model.qk_norm = False

    # multi-head latent attention (DeepSeek)
    c.model.latent = ml_collections.ConfigDict()
    # width of that vector; 0 for ordinary attention
    c.model.latent.kv_rank = 0
    # width of the compressed query; 0 for a full query map
    c.model.latent.query_rank = 0
    # entries of each head's query and key without positions
    c.model.latent.nope_dim = 128
    # entries with rotary positions; of the key, shared by all heads
    c.model.latent.rope_dim = 64
    # width of each head's value
    c.model.latent.value_dim = 128
    # one learned logit per head that takes softmax mass
    c.model.attention_sinks = False
    # bias on query, key and value
    c.model.attention_bias = False
    # bias on the attention's output
    c.model.attention_output_bias = False
    # auto, or a name from kernels.attention.BACKENDS
    c.model.attention_backend = "auto"
    # auto, or a name from kernels.cross_entropy.BACKENDS
    c.model.loss_backend = "auto"
    # rope; alibi; learned; sinusoidal; relative (T5 buckets); disentangled (DeBERTa); none
    c.model.position = "rope"
    # base of the rotary frequencies
    c.model.rope_theta = 10000.0
    # base in local layers; 0 for rope_theta
    c.model.local_rope_theta = 0.0
    # share of each head that is rotated
    c.model.rope_fraction = 1.0

    # extension beyond the trained length
    c.model.rope_scaling = ml_collections.ConfigDict()
    # none; linear (position interpolation); ntk (NTK-aware base); yarn (NTK by parts); llama3; longrope (Phi-3: factors per frequency)
    c.model.rope_scaling.kind = "none"
    # how many times longer than original_length
    c.model.rope_scaling.factor = 1.0
    # length the frequencies were trained on (yarn, llama3, longrope)
    c.model.rope_scaling.original_length = 8192
    # yarn: rotations above which a dimension is kept
    c.model.rope_scaling.beta_fast = 32.0
    # yarn: rotations below which a dimension is interpolated
    c.model.rope_scaling.beta_slow = 1.0
    # llama3: wavelengths over length/this are divided
    c.model.rope_scaling.low_frequency_factor = 1.0
    # llama3: wavelengths under length/this are kept
    c.model.rope_scaling.high_frequency_factor = 4.0
    # cos and sin are multiplied by this; None: yarn 0.1 ln(factor) + 1, longrope sqrt(1 + ln(factor) / ln(original_length))
    c.model.rope_scaling.attention_factor = ml_collections.config_dict.placeholder(float)
    # longrope: frequencies are divided by these while no position is past original_length
    c.model.rope_scaling.short_factors = ()
    # longrope: and by these in longer texts
    c.model.rope_scaling.long_factors = ()
    # T5 buckets; disentangled: buckets to either side
    c.model.relative_buckets = 32
    # distance from which buckets no longer grow
    c.model.relative_max_distance = 128
    # rows of a table of token types (BERT's segments); 0 for none
    c.model.token_types = 0
    # rmsnorm; layernorm
    c.model.norm = "rmsnorm"
    # pre: x + f(norm(x)); post: norm(x + f(x)), no final norm; sandwich: x + norm(f(norm(x)))
    c.model.norm_placement = "pre"
    # added to the variance
    c.model.norm_epsilon = 1e-05
    # scale by 1 + weight (Gemma)
    c.model.norm_unit_offset = False
    # layernorm: has a bias
    c.model.norm_bias = True
    # normalise the embeddings (BERT)
    c.model.embedding_norm = False
    # pre: norm before the first layer's attention (ModernBERT has none)
    c.model.first_attention_norm = True
    # attention and feed-forward side by side (GPT-NeoX)
    c.model.parallel_block = False
    # swiglu; geglu; gelu
    c.model.ffn = "swiglu"
    # biases in the feed-forward layer
    c.model.ffn_bias = False
    # tanh form of GELU
    c.model.gelu_approximate = True
    # repeated over the layers: dense or moe
    c.model.ffn_pattern = ("dense",)
    # first layers that are dense whatever the pattern
    c.model.num_leading_dense = 0

    # mixture of experts
    c.model.moe = ml_collections.ConfigDict()
    # experts per layer; 0 for a dense model
    c.model.moe.num_experts = 0
    # experts per token
    c.model.moe.top_k = 2
    # width of one expert; 0 for the model's intermediate_size
    c.model.moe.intermediate_size = 0
    # softmax, then top-k; sigmoid, then top-k; expert_choice (bidirectional models only)
    c.model.moe.router = "softmax"
    # make the k chosen weights sum to one
    c.model.moe.renormalize = True
    # auxiliary-loss-free balancing: a bias moves the selection, never the weights
    c.model.moe.selection_bias = False
    # step of the selection bias
    c.model.moe.bias_update_rate = 0.001
    # neighbouring experts in this many groups; 0 for none
    c.model.moe.num_groups = 0
    # groups that a token's experts come from
    c.model.moe.top_groups = 0
    # multiplies the routed experts' output
    c.model.moe.routed_scale = 1.0
    # router input times U(1-jitter, 1+jitter) in training
    c.model.moe.jitter = 0.0
    # experts that every token uses
    c.model.moe.num_shared_experts = 0
    # dense (reference); capacity; dropless
    c.model.moe.dispatch = "dropless"
    # dropless: gate, up and activation in one kernel; False where adapters wrap experts
    c.model.moe.fused = True
    # dropless: auto, or a name from kernels.grouped_matmul.BACKENDS
    c.model.moe.backend = "auto"
    # capacity: slots per expert over the even share
    c.model.moe.capacity_factor = 1.25
    # capacity: tokens per group; 0 for one group per sequence
    c.model.moe.group_size = 0
    # dropless over mesh.expert: rows travel ragged (TPU) or padded; auto: ragged where it can
    c.model.moe.exchange = "auto"
    # and a round has room for this much of the even share; what is over takes another
    c.model.moe.exchange_factor = 1.5
    # weight of the load balance loss
    c.model.moe.balance_coefficient = 0.01
    # weight of the router z-loss
    c.model.moe.z_coefficient = 0.001
    # the head is the embedding table
    c.model.tied_embeddings = False
    # bias on the head's logits
    c.model.head_bias = False
    # multiply embeddings by sqrt(hidden_size)
    c.model.embedding_scale = False
    # c * tanh(logits / c); 0 for none
    c.model.final_softcap = 0.0
    # dense, gelu and norm before the head (BERT); its bias as ffn_bias
    c.model.head_transform = False
    # one vector per row: none; cls (of the first token); mean (over all tokens); last (of the last token, which in a decoder has seen all)
    c.model.pooling = "none"
    # then a dense map and: none (no map); tanh (BERT); gelu (DeBERTa); gelu_norm (ModernBERT)
    c.model.pooler = "none"
    # outputs of a task head; 0 for none; 1 for regression
    c.model.num_labels = 0
    # the task head reads: sequence (what is pooled); token
    c.model.label_level = "sequence"
    # on attention probabilities, in training
    c.model.attention_dropout = 0.0
    # on each block's two outputs, in training
    c.model.residual_dropout = 0.0
    # on the embeddings, in training
    c.model.embedding_dropout = 0.0
    # standard deviation of normal initial weights
    c.model.init_std = 0.02
    # divide it by sqrt(2 num_layers) on residual outputs
    c.model.scale_residual_init = True
    # muP: hidden_size the learning rate was tuned at; 0 switches width scaling off
    c.model.mup_base_width = 0
    # of activations and matmuls
    c.model.dtype = "float32"
    # of the master weights
    c.model.param_dtype = "float32"
    # recomputed in the backward pass: none; full (all of a block); dots (all but dense maps and, on TPU, attention)
    c.model.remat = "none"
    # on: one compiled period of layers; off: unrolled; auto: off on CPU only
    c.model.scan_layers = "auto"

    # weights to start from
    c.init = ml_collections.ConfigDict()
    # a Hugging Face model folder; model section and tokenizer are taken from it
    c.init.hf_folder = ""
    # a run, whose newest weights, model section and tokenizer are taken; a new run begins
    c.init.workdir = ""

    # adapters on a frozen model
    c.peft = ml_collections.ConfigDict()
    # none, or a name from peft.METHODS
    c.peft.method = "none"
    # patterns of module paths; 'all-linear'; () for the method's own
    c.peft.targets = ()
    # patterns of module paths left out of them
    c.peft.exclude = ()
    # LoRA family: r; 0 for the method's own (8; vera 256)
    c.peft.rank = 0
    # LoRA family: the update counts alpha / r times; 0 for r
    c.peft.alpha = 0.0
    # alpha / r, or with sqrt_rank alpha / sqrt(r) (rsLoRA)
    c.peft.scaling = "rank"
    # 'PATTERN=RANK' where another rank is wanted
    c.peft.rank_pattern = ()
    # 'PATTERN=ALPHA' likewise
    c.peft.alpha_pattern = ()
    # on the adapter's input, in training
    c.peft.dropout = 0.0
    # LoRA, DoRA: default (B = 0), gaussian (A by 1/r), pissa, olora, loftq
    c.peft.init = "default"
    # loftq: how often codes and update take turns
    c.peft.loftq_iterations = 1
    # LoRA: a bias on B
    c.peft.bias = False
    # LoRA+: learning rate of B over A's; 0 for the method's own (lora_plus 16, else 1)
    c.peft.rate_ratio = 0.0
    # VeRA: initial value of d
    c.peft.vera_initial = 0.1
    # patterns of the model's own parameters that are trained beside the adapters
    c.peft.train_also = ()
    # of the adapters
    c.peft.dtype = "float32"
    # the frozen matrices
    c.peft.quantize = "none"
    # nf4: the scales in 8 bits too
    c.peft.double_quantize = True
    # a folder of adapters to start from
    c.peft.adapters = ""

    # AdaLoRA
    c.peft.adalora = ml_collections.ConfigDict()
    # of every matrix; peft.rank is what they end with on average
    c.peft.adalora.initial_rank = 12
    # steps before ranks begin to fall
    c.peft.adalora.warmup_steps = 0
    # steps after they have fallen
    c.peft.adalora.final_steps = 0
    # steps between two cuts
    c.peft.adalora.interval = 1
    # smoothing of |weight x gradient|
    c.peft.adalora.sensitivity_decay = 0.85
    # smoothing of how much that varies
    c.peft.adalora.uncertainty_decay = 0.85
    # weight of the penalty that keeps P and Q orthogonal
    c.peft.adalora.orthogonality = 0.5
    # square its norms and add them up, as in the paper
    c.peft.adalora.squared = False

    # houlsby, pfeiffer, parallel
    c.peft.bottleneck = ml_collections.ConfigDict()
    # width of the bottleneck; 0 for hidden_size / reduction
    c.peft.bottleneck.size = 0
    # hidden_size over that width; 0 for the method's own
    c.peft.bottleneck.reduction = 0
    # relu, gelu, silu; empty for the method's own
    c.peft.bottleneck.activation = ""
    # multiplies what is added; 0 for the method's own
    c.peft.bottleneck.scale = 0.0
    # zero_up (identity at the start); bert (N(0, 0.02) on both)
    c.peft.bottleneck.init = "zero_up"

    # prompt and prefix methods
    c.peft.prompt = ml_collections.ConfigDict()
    # virtual tokens
    c.peft.prompt.length = 20
    # width of the network that makes them; 0 for hidden_size
    c.peft.prompt.hidden = 0
    # p_tuning: mlp or lstm
    c.peft.prompt.encoder = "mlp"
    # normal (N(0, 1)); uniform (U(-0.5, 0.5)); vocabulary (rows of random tokens); text
    c.peft.prompt.init = "normal"
    # init='text': its tokens' embeddings, repeated as need be
    c.peft.prompt.text = ""
    # init='text': the ids of those tokens
    c.peft.prompt.tokens = ()
    # p_tuning_v2: on the virtual keys and values, in training
    c.peft.prompt.dropout = 0.0

    # text to token ids
    c.tokenizer = ml_collections.ConfigDict()
    # unigram, bpe, char (SentencePiece, trained here); word; byte; huggingface (from path)
    c.tokenizer.kind = "unigram"
    # pieces, special tokens included
    c.tokenizer.vocab_size = 8000
    # a saved tokenizer (folder, .model or tokenizer.json) to use as it is
    c.tokenizer.path = ""
    # share of characters that get a piece of their own
    c.tokenizer.character_coverage = 0.9995
    # spell what has no piece as UTF-8 bytes
    c.tokenizer.byte_fallback = True
    # one piece per digit
    c.tokenizer.split_digits = True
    # no piece holds Japanese and punctuation or Latin; off: longer pieces, as in です。
    c.tokenizer.split_scripts = True
    # identity; nfkc, but for what Japanese text needs (compiled into the model)
    c.tokenizer.normalization = "nfkc"
    # word: whitespace; mecab; sudachi
    c.tokenizer.word_segmenter = "whitespace"
    # text from the corpus start that it is trained on
    c.tokenizer.train_megabytes = 10.0

    # corpus and batches
    c.data = ml_collections.ConfigDict()
    # comma-separated KIND:PATH@WEIGHT; kind: microworld, text, jsonl, parquet, array_record, huggingface, chat, labels, class_texts, microworld_chat or microworld_labels; $VARIABLES and globs are expanded, the kind may be left to the ending
    c.data.sources = "microworld"
    # field of jsonl, parquet, array_record, huggingface records
    c.data.text_field = "text"
    # text: a document is a whole file, or each block between blank lines
    c.data.text_documents = "file"
    # huggingface: the split to stream
    c.data.split = "train"
    # huggingface: the dataset's configuration name, such as ja
    c.data.subset = ""
    # microworld: documents before it repeats
    c.data.microworld_documents = 200000
    # folder of caches; empty for ~/.cache/jgpt ($JGPT_CACHE)
    c.data.cache = ""

    # filters over documents
    c.data.cleaning = ml_collections.ConfigDict()
    # none; nfkc (keeps 、。「」～ and the like)
    c.data.cleaning.normalize = "nfkc"
    # control and zero-width characters
    c.data.cleaning.strip_control = True
    # ruby《》 and annotations ［＃］ of Aozora Bunko
    c.data.cleaning.strip_aozora = True
    # navigation, copyright and cookie lines of web pages
    c.data.cleaning.drop_boilerplate = False
    # a line that the document already had
    c.data.cleaning.drop_repeated_lines = False
    # shorter documents are removed
    c.data.cleaning.min_characters = 1
    # longer ones are cut at sentence ends; 0 for never
    c.data.cleaning.max_characters = 0
    # least share of kana and kanji among letters
    c.data.cleaning.min_japanese_ratio = 0.0
    # least share of kana (tells Japanese from Chinese)
    c.data.cleaning.min_kana_ratio = 0.0
    # documents with the same text after the steps above
    c.data.cleaning.exact_dedup = False
    # near-duplicates above this Jaccard similarity; 0: off
    c.data.cleaning.minhash_threshold = 0.0

    # conversations
    c.data.chat = ml_collections.ConfigDict()
    # jgpt (for tokenizers trained here); chatml; llama2; llama3; gemma; mistral; alpaca_ja; or a .jinja file, or a model folder that has one
    c.data.chat.template = "jgpt"
    # tokens that count: replies (what the assistant wrote); last (its last reply); all
    c.data.chat.learn = "replies"
    # conversations longer than a row: cut (oldest exchanges, then prompt, then reply); error
    c.data.chat.overlong = "cut"
    # held-out questions that are asked and checked at the end
    c.data.chat.checked = 64

    # labelled records
    c.data.labels = ml_collections.ConfigDict()
    # field of the text
    c.data.labels.text = "text"
    # field of a second text; '' where there is none
    c.data.labels.pair = ""
    # field of the label
    c.data.labels.label = "label"
    # names of the classes; () where labels are numbers
    c.data.labels.classes = ()
    # sources of kind class_texts: lambda, what a token of theirs weighs in the loss
    c.data.class_weight = 1.0
    # unreadable records (UTF-8, JSON) before the run stops
    c.data.max_bad_records = 100
    # tokens per row
    c.data.sequence_length = 256
    # ids below 0 in front of every document; training sets them as peft.prompt says
    c.data.virtual_tokens = 0
    # rows per step, over all processes
    c.data.batch_size = 16
    # best_fit (whole documents where they fit); split (concatenate and cut); none (one a row)
    c.data.packing = "best_fit"
    # best_fit: documents for so many rows wait to be chosen from
    c.data.pack_open_rows = 64
    # a new order every epoch
    c.data.shuffle = True
    # documents in memory, for sources without an index
    c.data.shuffle_buffer = 2048
    # of shuffling
    c.data.seed = 0
    # 0 for as many as the steps need
    c.data.epochs = 0
    # fixed streams that processes share out among themselves
    c.data.virtual_shards = 64
    # of documents, by hash of their text
    c.data.validation_fraction = 0.01
    # at most this many of them are scored
    c.data.validation_documents = 512
    # processes that read and pack; 0 for a thread of this one
    c.data.workers = 0
    # batches made ahead
    c.data.prefetch = 8

    # update rule
    c.optimizer = ml_collections.ConfigDict()
    # adamw; adafactor; lion; muon
    c.optimizer.name = "adamw"
    # at its peak
    c.optimizer.learning_rate = 0.001
    # cosine; wsd (warmup, stable, decay); constant; all after a warmup
    c.optimizer.schedule = "cosine"
    # linear from 0
    c.optimizer.warmup_steps = 100
    # wsd: share of the steps that decay
    c.optimizer.decay_fraction = 0.2
    # learning rate at the end over its peak
    c.optimizer.final_fraction = 0.1
    # first moment (adamw, lion), momentum (muon uses 0.95)
    c.optimizer.b1 = 0.9
    # second moment
    c.optimizer.b2 = 0.95
    # adamw's
    c.optimizer.epsilon = 1e-08
    # decoupled; on matrices only
    c.optimizer.weight_decay = 0.1
    # of the global gradient; 0 for none
    c.optimizer.clip_norm = 1.0
    # muon: of the matrices; the rest uses learning_rate
    c.optimizer.muon_learning_rate = 0.02
    # muon's Nesterov momentum
    c.optimizer.muon_momentum = 0.95
    # exponential moving average of the weights; 0 for none
    c.optimizer.ema_decay = 0.0
    # 'PATTERN: freeze' or 'PATTERN: rate=R decay=D' over parameter paths; first match wins
    c.optimizer.rules = ()
    # keep the optimizer's state in host memory, where devices have a pinned_host
    c.optimizer.offload = False

    # what is minimised
    c.objective = ml_collections.ConfigDict()
    # a name from objectives.OBJECTIVES
    c.objective.name = "pretrain"
    # weight of logsumexp(logits)**2
    c.objective.z_loss = 0.0
    # share of each target's mass spread evenly over the vocabulary, the target included
    c.objective.label_smoothing = 0.0
    # mlm, span_corruption: share of the tokens hidden
    c.objective.noise_density = 0.15
    # span_corruption: tokens per hidden span, on average
    c.objective.mean_span = 3.0
    # mlm: the mask token; -1 for a row added after the tokenizer's ids
    c.objective.mask_id = -1
    # span_corruption: id of the first sentinel, the others below; -1 for rows added
    c.objective.first_sentinel = -1
    # span_corruption: sentinels, so many spans in a document
    c.objective.num_sentinels = 100
    # span_corruption: ends a target; -1 for the tokenizer's eos
    c.objective.end_id = -1

    # what a fine-tuned model keeps
    c.forgetting = ml_collections.ConfigDict()
    # elastic weight consolidation: what python -m jgpt.fisher made (its folder, or the run)
    c.forgetting.ewc = ""
    # ewc: L of L / 2 * sum F (theta - theta0)^2, which is added to the mean loss
    c.forgetting.ewc_weight = 1.0
    # held-out documents that the run is compared on with the model it began as; 0 for none
    c.forgetting.drift_documents = 0
    # drift: where they are from, as data.sources
    c.forgetting.drift_sources = "microworld"
    # drift: as the first run's data.validation_fraction, or less: its held-out texts
    c.forgetting.drift_fraction = 0.01

    # loop
    c.train = ml_collections.ConfigDict()
    # optimizer steps
    c.train.steps = 1000
    # gradient accumulation: parts a batch is cut into
    c.train.microbatches = 1
    # of weight gradients while devices add theirs up; bfloat16 halves that traffic
    c.train.gradient_dtype = "float32"
    # of initial weights and dropout
    c.train.seed = 0
    # steps between lines of metrics.jsonl on screen and TensorBoard
    c.train.log_every = 10
    # steps between validations; 0 for only the last
    c.train.eval_every = 200
    # steps between samples; 0 for only the last
    c.train.sample_every = 200
    # skipped non-finite steps in a row before the run stops
    c.train.max_nonfinite = 10
    # main: glibc keeps freed buffers (CPU only; 1.2-1.6x faster)
    c.train.keep_malloc = True

    # what is kept on disk
    c.checkpoint = ml_collections.ConfigDict()
    # steps between checkpoints; 0 for only the last
    c.checkpoint.every = 200
    # newest ones kept
    c.checkpoint.keep_last = 2
    # ones of lowest validation loss kept
    c.checkpoint.keep_best = 1
    # write while training goes on
    c.checkpoint.asynchronous = True

    # text written by the model
    c.sample = ml_collections.ConfigDict()
    # each is continued; '' starts a document
    c.sample.prompts = ("",)
    # per round in training, over the prompts in turn
    c.sample.num_samples = 4
    # at most
    c.sample.max_new_tokens = 128
    # 0 is greedy
    c.sample.temperature = 0.8
    # only the k likeliest; 0 for all
    c.sample.top_k = 0
    # only the likeliest that make up this mass; 1 for all
    c.sample.top_p = 0.95
    # only those at least this times as likely as the likeliest
    c.sample.min_p = 0.0
    # makes tokens of the text so far unlikelier; 1: off
    c.sample.repetition_penalty = 1.0
    # of sampling
    c.sample.seed = 0

    # of past tokens
    c.sample.cache = ml_collections.ConfigDict()
    # slots: each row has room for its longest length; pages: rows take pages of a common pool
    c.sample.cache.kind = "slots"
    # of keys and values: model (that of activations); float32; bfloat16; int8 (a scale per token and head)
    c.sample.cache.dtype = "model"
    # tokens of a page
    c.sample.cache.page_size = 128
    # written and judged at the end of a run; 0 for none
    c.sample.final_samples = 50

    # devices
    c.mesh = ml_collections.ConfigDict()
    # replicas of the weights, each with its own rows
    c.mesh.data = -1
    # weights cut up, rows too
    c.mesh.fsdp = 1
    # experts
    c.mesh.expert = 1
    # heads and feed-forward columns
    c.mesh.tensor = 1
    # positions of the sequence
    c.mesh.context = 1
    return c
