"""Chat templates in the styles that public models have, and tokenizers of their kinds; no torch is needed here.

Shared by the parity tests and by those of data_pipelines.
"""

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipelines.tokenizers import HuggingFaceTokenizer

TEXTS = [
    "Is there a red circle in the picture? The red circle is on the left, isn't it?",
    "Есть ли на картинке красный круг? На картинке красный круг и синий квадрат.",
    "user assistant system answer question Hello world, 12345 apples and 3.14 pies",
    "def area(x):\n\treturn x * 2  # twice\n\n\nfor i in range(10):\n    print(i)\n",
    "  leading and   many spaces   и пробелы  ",
] * 4

SAMPLES = [
    "What's in the picture?",
    "Что на картинке — круг или квадрат? Ёлка, йод.",
    "  two leading spaces and a tail \n",
    "\n\nlines\n\n\nof text\r\n\tand tabs",
    "1234567 3.14 1,000,000 ¾ ٣٤",
    "😀👨‍👩‍👧 é e\u0301 ﬁ 漢字 \u200b",
    "def f(x):\n    return x[0]  # <|im_end|>\n",
    "</s> <s> <image> <|eot_id|> [INST] <end_of_turn> <unk> <0x41>",
    "",
    " ",
    "\x00\x7f\ufffd",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORDS = _LLAMA3_WORDS.replace("{1,3}", "")

CONTROL = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "smollm": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>",
               "<global-img>"),
    "metaspace": ("<unk>", "<s>", "</s>"),
    "unigram": ("<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"),
}  # fmt: skip
"""Control tokens by the kind of tokenizer; the ids that end a text come first in ENDS."""

ENDS = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "smollm": "<|im_end|>", "metaspace": "</s>", "unigram": "</s>"}
BOS = {"llama3": "<|begin_of_text|>", "smollm": "<|im_start|>", "metaspace": "<s>", "unigram": "<s>"}
KINDS = tuple(CONTROL)


def build_tokenizer(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer of a public model's kind, trained on TEXTS."""
    control = [AddedToken(piece, special=True, normalized=False) for piece in CONTROL[kind]]
    if kind in ("metaspace", "unigram"):
        return _sentencepiece_like(kind, control)
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    cut = {
        "llama3": lambda: pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
        "qwen": lambda: pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated"),
        "smollm": lambda: pre_tokenizers.Digits(individual_digits=True),
    }[kind]()
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(control)
    if kind == "llama3":
        _opens_with(tokenizer, BOS[kind])
    return tokenizer


def _sentencepiece_like(kind: str, control: list[AddedToken]) -> tokenizers.Tokenizer:
    """With ▁ for spaces and bytes for what is not known; 'metaspace' puts a space in front of the first word."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    scheme = "first" if kind == "metaspace" else "never"
    if kind == "metaspace":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer: object = trainers.BpeTrainer(
            vocab_size=450, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=450, special_tokens=["<unk>", *pieces], unk_token="<unk>", show_progress=False
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind == "unigram")
    tokenizer.train_from_iterator(TEXTS, trainer)
    plain = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        *([decoders.Strip(" ", 1, 0)] if scheme == "first" else []),
    ]
    tokenizer.decoder = decoders.Sequence(plain)
    return _without_special_bytes(tokenizer, kind, control)


def _without_special_bytes(trained: tokenizers.Tokenizer, kind: str, control: list[AddedToken]) -> tokenizers.Tokenizer:
    """The trainer makes the byte pieces special; in public models they are ordinary entries of the vocabulary."""
    import json

    plain = json.loads(trained.to_str())
    plain["added_tokens"] = []
    if kind == "unigram":
        plain["model"]["byte_fallback"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    tokenizer.add_special_tokens(control)
    _opens_with(tokenizer, "<s>")
    return tokenizer


def _opens_with(tokenizer: tokenizers.Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def our_tokenizer(kind: str, image: bool = False) -> HuggingFaceTokenizer:
    """The same as one of ours; `image` adds <image>."""
    built = build_tokenizer(kind)
    bos = BOS.get(kind)
    tokenizer = HuggingFaceTokenizer(
        built.to_str(),
        end_ids=(built.token_to_id(ENDS[kind]),),
        bos_id=None if bos is None else built.token_to_id(bos),
    )
    return tokenizer.with_control("<image>") if image else tokenizer


def sentencepiece_model(kind: str = "bpe", *, turns: tuple[str, ...] = ()) -> bytes:
    """An imported model's kind of file: Llama 2's (a space in front, control tokens <s> and </s>, no padding token)."""
    import io

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS for line in text.split("\n")),
        model_writer=out,
        vocab_size=420,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(turns),
        add_dummy_prefix=not turns,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()
