"""Tiny models with random weights, made by transformers and sentence-transformers themselves and saved to a folder.

Each is of a real architecture with a real tokenizer, so what is loaded from the folder goes through the same code as
the published model does. They know nothing; they are there to be loaded, and compared with the libraries' own vectors.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = [
    "I'm allergic to peanuts, and my sister plays the piano on Tuesdays.",
    "query: passage: search_query: search_document: Instruct: Given a web search query, retrieve relevant passages",
    "Represent this sentence for searching relevant passages: The train to Berlin leaves at nine. What can't I eat?",
    "¿Qué no puedo comer? Je ne mange pas de viande. 花生过敏 ピアノ",
] * 20


def bert_tokenizer(*, lower: bool = True) -> PreTrainedTokenizerFast:
    """WordPiece, as BERT and most sentence-transformers have it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as RoBERTa has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram pieces behind a lower one eighth block, as SentencePiece makes them for ALBERT and XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with bytes to fall back on, padded on the left, an end-of-text piece behind each text: E5-Mistral's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=96,
    )


def transformers_folder(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A folder of transformers alone, without the modules of sentence-transformers, as fine-tuners start from."""
    import transformers

    model: Any
    config: Any
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 37, "max_position_embeddings": 66}
    torch.manual_seed(seed)
    if kind in ("bert", "multilingual", "minilm"):
        tokenizer = bert_tokenizer(lower=kind != "multilingual")
        model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **small))
    elif kind == "classifier":
        tokenizer = bert_tokenizer()
        config = transformers.BertConfig(vocab_size=len(tokenizer), **small)
        config.num_labels = 1
        model = transformers.BertForSequenceClassification(config)
    elif kind == "roberta":
        tokenizer = byte_tokenizer()
        model = transformers.RobertaModel(
            transformers.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1, **small)
        )
    elif kind == "distilbert":
        tokenizer = bert_tokenizer()
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        model = transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=2, hidden_dim=37, max_position_embeddings=66
            )
        )
    elif kind == "albert":
        tokenizer = unigram_tokenizer()
        model = transformers.AlbertModel(
            transformers.AlbertConfig(vocab_size=len(tokenizer), embedding_size=16, **small)
        )
    elif kind in ("mistral", "writer"):
        tokenizer = mistral_tokenizer()
        config = transformers.MistralConfig(
            vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, **small | {"max_position_embeddings": 96}
        )
        model = (transformers.MistralModel if kind == "mistral" else transformers.MistralForCausalLM)(config)
    else:
        raise ValueError(kind)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence_transformer(
    folder: Path,
    kind: str,
    *,
    pooling: str = "mean",
    normalise: bool = True,
    dense: int | None = None,
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
    max_seq_length: int | None = None,
    chat_template: str | None = None,
    truncate_dim: int | None = None,
    seed: int = 0,
) -> Path:
    """A model with its modules, as it would come from the hub."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    start = transformers_folder(folder.with_name(folder.name + "-start"), kind, seed=seed)
    if chat_template is not None:
        edit(start / "tokenizer_config.json", chat_template=chat_template)
    torch.manual_seed(seed)
    transformer = modules.Transformer(str(start))
    if max_seq_length is not None:
        transformer.max_seq_length = max_seq_length
    steps: list[torch.nn.Module] = [
        transformer,
        modules.Pooling(transformer.get_embedding_dimension(), pooling, include_prompt=include_prompt),
    ]
    if dense is not None:
        steps.append(modules.Dense(transformer.get_embedding_dimension(), dense))
    if normalise:
        steps.append(modules.Normalize())
    model = SentenceTransformer(modules=steps, prompts=prompts, truncate_dim=truncate_dim, device="cpu")
    model.save(str(folder), create_model_card=False)
    shutil.rmtree(start)
    return folder


def router(folder: Path, *, seed: int = 0) -> Path:
    """Static vectors for queries beside a BERT for documents, of one length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer import modules

    start = transformers_folder(folder.with_name(folder.name + "-start"), "bert", seed=seed)
    transformer = modules.Transformer(str(start))
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "mean")
    static = modules.StaticEmbedding(Tokenizer.from_file(str(start / "tokenizer.json")), embedding_dim=32)
    routes = Router.for_query_document(query_modules=[static], document_modules=[transformer, pooling])
    SentenceTransformer(modules=[routes, modules.Normalize()], device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(start)
    return folder


def clip(folder: Path, *, wrapped: bool = True, seed: int = 0) -> Path:
    """A CLIP pair: texts and images in one space of 24 dimensions; with or without sentence-transformers' modules."""
    import transformers
    from sentence_transformers import SentenceTransformer

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    start = folder.with_name(folder.name + "-start") if wrapped else folder
    transformers.CLIPModel(config).eval().save_pretrained(start)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(start)
    if wrapped:
        SentenceTransformer(str(start), device="cpu").save(str(folder), create_model_card=False)
        shutil.rmtree(start)
    return folder


def cross_encoder(folder: Path, *, labels: int = 1, activation: str | None = None, seed: int = 0) -> Path:
    """A BERT that compares two texts, as sentence-transformers saves it."""
    import transformers
    from sentence_transformers import CrossEncoder

    tokenizer = bert_tokenizer()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=66,
        initializer_range=0.4,  # so that scores differ
    )
    config.num_labels = labels
    start = folder.with_name(folder.name + "-start")
    transformers.BertForSequenceClassification(config).eval().save_pretrained(start)
    tokenizer.save_pretrained(start)
    options = {} if activation is None else {"activation_fn": getattr(torch.nn, activation)()}
    CrossEncoder(str(start), device="cpu", **options).save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(start)
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
