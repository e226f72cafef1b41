"""Language models of Hugging Face transformers at small sizes, the zoo's expressions of them at the same sizes, and our
weights as functions of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import transformers
from pairs import falcon_h1_weights, kimi_linear_weights, qwen3_next_weights, recurrent_gemma_weights
from torch import Tensor, nn

from formwright import zoo
from formwright.model import Model
from formwright.wiring.stack import Residual

VOCAB = 67
Weights = dict[str, Tensor]
Branch = tuple[Weights, Weights]  # of the norm, of the part


@dataclass(frozen=True)
class Language:
    """theirs() builds their model; `name` and `changes` say our expression: a zoo entry with words of it replaced;
    branches(theirs) are the weights of ours, branch by branch; rest(theirs) those outside of branches. spare(theirs)
    are parameters that ours hasn't, `added` how many ours has that theirs hasn't: both stay zero here."""

    theirs: Callable[[], nn.Module]
    name: str
    changes: dict[str, str]
    branches: Callable[[nn.Module], Iterator[Branch]]
    rest: Callable[[nn.Module], Weights]
    spare: Callable[[nn.Module], list[Tensor]] = lambda theirs: []
    added: int = 0

    @property
    def expression(self) -> str:
        text = zoo.get(self.name)
        for old, new in self.changes.items():
            assert old in text, f"{old} is no longer in the expression of {self.name}"
            text = text.replace(old, new)
        return text

    def weights(self, theirs: nn.Module, ours: Model) -> Weights:
        return weights_by_name(ours, self.rest(theirs), self.branches(theirs))


def weights_by_name(ours: Model, rest: Weights, branches: Iterator[Branch]) -> Weights:
    """Ours by the names of our state: strict=True then says that none is missing and none too many."""
    residuals = [(name, module) for name, module in ours.named_modules() if isinstance(module, Residual)]
    found = dict(rest)
    for (name, residual), (norm, part) in zip(residuals, branches, strict=True):
        place = "branch_part.mixer.part" if hasattr(residual.branch_part, "mixer") else "branch_part.part"
        place = "branch_part" if hasattr(residual.branch_part, "branches") else place
        found |= {f"{name}.style.norm.{key}": value for key, value in norm.items()}
        found |= {f"{name}.{place}.{key}": value for key, value in part.items()}
    return found


def of(**modules: nn.Module) -> Weights:
    """Weights and biases of modules, under our names for them."""
    return {f"{name}.{key}": value for name, m in modules.items() for key, value in m.named_parameters()}


def plain(norm: nn.Module) -> Weights:
    return dict(norm.named_parameters())


def centred(norm: nn.Module) -> Weights:
    """Theirs scales by 1 + weight."""
    return {"weight": 1 + norm.weight}


def projections(m: nn.Module) -> Weights:
    return of(query=m.q_proj, key=m.k_proj, value=m.v_proj, out=m.o_proj)


def gated_unit(m: nn.Module) -> Weights:
    return of(gate=m.gate_proj, value=m.up_proj, out=m.down_proj)


def tied(embed: nn.Embedding) -> Weights:
    return {"embed.weight": embed.weight, "head.weight": embed.weight}


def llama(scaling: dict[str, float | str] | None = None, **options: int) -> nn.Module:
    scaled = {} if scaling is None else {"rope_parameters": scaling}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
            intermediate_size=132, rms_norm_eps=1e-5, max_position_embeddings=64, **options, **scaled,
        )
    )  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def mistral() -> nn.Module:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
            head_dim=8, intermediate_size=168, rms_norm_eps=1e-5, sliding_window=7,
        )
    )  # fmt: skip


def llama_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.model.layers:
        yield plain(layer.input_layernorm), projections(layer.self_attn)
        yield plain(layer.post_attention_layernorm), gated_unit(layer.mlp)


def llama_rest(m: nn.Module) -> Weights:
    return {"embed.weight": m.model.embed_tokens.weight, "head.weight": m.lm_head.weight} | of(norm=m.model.norm)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    )


def turned(**modules: nn.Module) -> Weights:
    """Theirs keeps a linear map's weight as (inputs, outputs)."""
    return {name: p.T if p.ndim == 2 else p for name, p in of(**modules).items()}


def gpt2_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.transformer.h:
        joint = layer.attn.c_attn
        part = turned(out=layer.attn.c_proj)
        pieces = zip(joint.weight.T.chunk(3), joint.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), pieces, strict=True):
            part |= {f"{name}.weight": weight, f"{name}.bias": bias}
        yield plain(layer.ln_1), part
        yield plain(layer.ln_2), turned(inner=layer.mlp.c_fc, out=layer.mlp.c_proj)


def gpt2_rest(m: nn.Module) -> Weights:
    places = {"embed.position.table": m.transformer.wpe.weight}
    return tied(m.transformer.wte) | places | of(norm=m.transformer.ln_f)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def bert_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.encoder.layer:
        heads, after = layer.attention.self, layer.attention.output
        yield plain(after.LayerNorm), of(query=heads.query, key=heads.key, value=heads.value, out=after.dense)
        yield plain(layer.output.LayerNorm), of(inner=layer.intermediate.dense, out=layer.output.dense)


def bert_embedding(m: nn.Module) -> Weights:
    e = m.embeddings
    return {
        "embed.weight": e.word_embeddings.weight,
        "embed.position.table": e.position_embeddings.weight,
        "embed.segment": e.token_type_embeddings.weight,
        "embed.norm.weight": e.LayerNorm.weight,
        "embed.norm.bias": e.LayerNorm.bias,
    }


def bert_rest(m: nn.Module) -> Weights:
    head = m.cls.predictions
    inner = {f"head.{name}": p for name, p in of(inner=head.transform.dense, norm=head.transform.LayerNorm).items()}
    return bert_embedding(m.bert) | inner | {"head.weight": head.decoder.weight, "head.bias": head.bias}


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCAB, d_model=48, d_kv=8, num_layers=2, num_heads=6, d_ff=192)
    )


def t5_attention(m: nn.Module, table: Tensor | None = None) -> Weights:
    """They don't divide scores by the root of a head's width, which our queries' weights take in."""
    part = of(key=m.k, value=m.v, out=m.o) | {"query.weight": m.q.weight * math.sqrt(m.key_value_proj_dim)}
    return part if table is None else part | {"position.table": table[None]}


def t5_branches(m: nn.Module) -> Iterator[Branch]:
    for side in (m.encoder, m.decoder):
        table = side.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for block in side.block:
            own, *across, last = block.layer
            yield plain(own.layer_norm), t5_attention(own.SelfAttention, table)
            for layer in across:
                yield plain(layer.layer_norm), t5_attention(layer.EncDecAttention)
            yield plain(last.layer_norm), of(inner=last.DenseReluDense.wi, out=last.DenseReluDense.wo)


def t5_rest(m: nn.Module) -> Weights:
    ends = {"stack.norm.weight": m.encoder.final_layer_norm.weight, "norm.weight": m.decoder.final_layer_norm.weight}
    return tied(m.shared) | ends


def recurrent_gemma() -> nn.Module:
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1,
            head_dim=16, intermediate_size=384, attention_window_size=7,
        )
    )  # fmt: skip


def recurrent_gemma_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.model.layers:
        block, mlp = layer.temporal_block, layer.mlp_block
        recurrent = hasattr(block, "rg_lru")
        part = recurrent_gemma_weights(block) if recurrent else projections(block)
        part.pop("out.bias" if not recurrent else "", None)
        yield centred(layer.temporal_pre_norm), part
        yield centred(layer.channel_pre_norm), gated_unit(mlp)


def recurrent_gemma_rest(m: nn.Module) -> Weights:
    return tied(m.model.embed_tokens) | {"norm.weight": 1 + m.model.final_norm.weight}


def recurrent_gemma_spare(m: nn.Module) -> list[Tensor]:
    """The bias after local attention, which ours has for all four of its maps or for none."""
    blocks = [layer.temporal_block for layer in m.model.layers]
    return [block.o_proj.bias for block in blocks if hasattr(block, "o_proj")]


def falcon_h1() -> nn.Module:
    return transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=96, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_d_state=16,
            mamba_n_groups=1, mamba_chunk_size=16, tie_word_embeddings=False, pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e11},
        )
    )  # fmt: skip


def falcon_h1_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.model.layers:
        both = {f"branches.0.part.{name}": p for name, p in projections(layer.self_attn).items()}
        both |= {f"branches.1.part.{name}": p for name, p in falcon_h1_weights(layer.mamba).items()}
        yield plain(layer.input_layernorm), both
        yield plain(layer.pre_ff_layernorm), gated_unit(layer.feed_forward)


def falcon_h1_rest(m: nn.Module) -> Weights:
    ends = {"embed.weight": m.model.embed_tokens.weight, "head.weight": m.lm_head.weight}
    return ends | of(norm=m.model.final_layernorm)


def qwen3_next() -> nn.Module:
    return transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, intermediate_size=132, linear_num_key_heads=2, linear_num_value_heads=4,
            linear_key_head_dim=8, linear_value_head_dim=8, mlp_only_layers=[0, 1, 2, 3], rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        )
    )  # fmt: skip


def qwen3_next_attention(m: nn.Module) -> Weights:
    """Their queries and gates are one map, each head's together."""
    query, gate = m.q_proj.weight.unflatten(0, (-1, 2, m.head_dim)).unbind(1)
    part = of(key=m.k_proj, value=m.v_proj, out=m.o_proj)
    part |= {"query.weight": query.flatten(0, 1), "gate.weight": gate.flatten(0, 1)}
    return part | {"query_norm.weight": 1 + m.q_norm.weight, "key_norm.weight": 1 + m.k_norm.weight}


def qwen3_next_branches(m: nn.Module) -> Iterator[Branch]:
    for layer in m.model.layers:
        recurrent = hasattr(layer, "linear_attn")
        part = qwen3_next_weights(layer.linear_attn) if recurrent else qwen3_next_attention(layer.self_attn)
        yield centred(layer.input_layernorm), part
        yield centred(layer.post_attention_layernorm), gated_unit(layer.mlp)


def qwen3_next_rest(m: nn.Module) -> Weights:
    ends = {"embed.weight": m.model.embed_tokens.weight, "head.weight": m.lm_head.weight}
    return ends | {"norm.weight": 1 + m.model.norm.weight}


KIMI_LAYERS = [*3 * ["linear_attention"], "full_attention", *2 * ["linear_attention"], "full_attention"]


def kimi() -> nn.Module:
    return transformers.KimiLinearForCausalLM(
        transformers.KimiLinearConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=7, layer_types=KIMI_LAYERS, num_attention_heads=4,
            num_key_value_heads=4, intermediate_size=192, mlp_layer_types=7 * ["dense"], kv_lora_rank=24,
            qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, linear_num_heads=4, linear_head_dim=8,
            rms_norm_eps=1e-5, pad_token_id=0,
        )
    )  # fmt: skip


def kimi_latent(m: nn.Module) -> Weights:
    return of(query=m.q_proj, down=m.kv_a_proj_with_mqa, norm=m.kv_a_layernorm, up=m.kv_b_proj, out=m.o_proj)


def kimi_branches(m: nn.Module) -> Iterator[Branch]:
    for layer, kind in zip(m.model.layers, KIMI_LAYERS, strict=True):
        weights = kimi_linear_weights if kind == "linear_attention" else kimi_latent
        yield plain(layer.input_layernorm), weights(layer.self_attn)
        yield plain(layer.post_attention_layernorm), gated_unit(layer.mlp)


SMALL_LLAMA = {"dim=2048": "dim=48", "heads=32": "heads=6"}
LANGUAGES = {
    "llama": Language(
        llama, "tinyllama-1.1b", SMALL_LLAMA | {"22*": "2*", "kv_heads=4": "kv_heads=2"}, llama_branches, llama_rest
    ),
    "llama 3": Language(
        lambda: llama(LLAMA3, tie_word_embeddings=True),
        "llama-3.2-1b",
        SMALL_LLAMA | {"16*": "2*", "kv_heads=8": "kv_heads=2", "expansion=4": "expansion=2.75"},
        llama_branches,
        llama_rest,
    ),
    "mistral": Language(
        mistral,
        "mistral-7b",
        {"dim=4096": "dim=48", "heads=32, kv_heads=8": "heads=6, kv_heads=2", "32*": "2*", "window=4096": "window=7"},
        llama_branches,
        llama_rest,
    ),
    "gpt2": Language(
        gpt2,
        "gpt2-small",
        {"dim=768": "dim=48", "12*": "2*", "heads=12": "heads=4", "length=1024": "length=64"},
        gpt2_branches,
        gpt2_rest,
    ),
    "recurrent_gemma": Language(
        recurrent_gemma,
        "recurrentgemma-2b",
        {"dim=2560": "dim=64", "8*(": "2*(", "heads=10": "heads=4", "window=2048": "window=7"},
        recurrent_gemma_branches,
        recurrent_gemma_rest,
        recurrent_gemma_spare,
    ),
    "falcon_h1": Language(
        falcon_h1,
        "falcon-h1-0.5b",
        {"dim=1024": "dim=48", "36*": "2*", "heads=8, kv_heads=2, head_dim=64": "heads=4, kv_heads=2, head_dim=8"}
        | {"heads=24, head_dim=64, state_dim=128": "heads=6, head_dim=8, state_dim=16"},
        falcon_h1_branches,
        falcon_h1_rest,
    ),
    "qwen3_next": Language(
        qwen3_next,
        "qwen3-next",
        {
            "dim=2048": "dim=48",
            "12*(": "1*(",
            "heads=32, key_heads=16, head_dim=128": "heads=4, key_heads=2, head_dim=8",
        }
        | {"heads=16, kv_heads=2, head_dim=256": "heads=4, kv_heads=2, head_dim=16"},
        qwen3_next_branches,
        qwen3_next_rest,
    ),
    "kimi_linear": Language(
        kimi,
        "kimi-linear",
        {"dim=2304": "dim=48", "6*(": "1*(", "heads=32, head_dim=128": "heads=4, head_dim=8"}
        | {"rank=512, rope_dim=64": "rank=24, rope_dim=4"},
        kimi_branches,
        llama_rest,
        added=5 * 4 * 8,  # biases of the output gates
    ),
}
BERT = Language(
    bert,
    "bert-base",
    {"dim=768": "dim=48", "12*": "2*", "heads=12": "heads=4", "length=512": "length=64"},
    lambda m: bert_branches(m.bert),
    bert_rest,
)
T5 = Language(t5, "t5-small", {"dim=512": "dim=48", "6*": "2*", "heads=8": "heads=6"}, t5_branches, t5_rest)
