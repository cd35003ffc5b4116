"""A small tokenizer made on the spot: byte-level BPE, ChatML with or without generation blocks."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ekd_nemo.sources import python_docs

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same text; the block closes before the end-of-turn token.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Renders the last turn otherwise than earlier ones, so that prefixes do not render as prefixes.
UNSTEADY = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{{ '<|im_end|>' if loop.last else ' / ' }}{% endfor %}"
)


def small_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """512 entries trained on a piece of the language reference."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((doc.text for doc in python_docs.documents()[:30]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


def saved_tokenizer(folder: Path) -> Path:
    """The ChatML tokenizer as a folder."""
    small_tokenizer().save_pretrained(folder)
    return folder
