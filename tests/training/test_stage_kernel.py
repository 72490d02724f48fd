"""Which attention kernel a stage runs, by hardware and by what its examples are; and that TPUs' compiler takes it."""

import dataclasses

import pytest

from data_pipelines.emits import emits
from data_pipelines.kinds import Captions, Instruct, Interleaved, Preference, TextOnly
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.sources import JSONLines
from data_pipelines.template import ChatTemplate, PrefixTemplate, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import Experiment, Stage, Validation
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.rehearsal.topology import absent_devices, parse_topology
from vlm_jax.serialise import from_plain
from vlm_jax.training.program import build_program

DECODER = DecoderConfig(
    vocabulary_size=256, width=64, layers=2, heads=4, key_value_heads=2, head_size=64, mlp_width=128, remat="full"
)


def entries(*kinds):
    return tuple(MixtureEntry(JSONLines(f"{i}.jsonl"), kind, name=f"entry_{i}") for i, kind in enumerate(kinds))


def experiment(*kinds, kernel="auto", template=None, validation=(), images=0, **decoder):
    data = DataConfig(entries(*kinds), rows=8, length=256, images=images)
    aside = Validation(entries(*validation)) if validation else None
    config = VLMConfig(dataclasses.replace(DECODER, attention_kernel=kernel, **decoder))
    if images:
        mu = vlm_mu()
        config = dataclasses.replace(mu, decoder=dataclasses.replace(mu.decoder, attention_kernel=kernel))
    return Experiment(
        "tiny",
        dataclasses.replace(config, precision=Precision("bfloat16", "float32")),
        (Stage("only", data, steps=2, validation=aside),),
        tokenizer=SentencePieceConfig(vocabulary_size=256),
        template=template or TemplateConfig(),
    )


PLAIN = (TextOnly(), Interleaved(), Captions(captions=1), Captions(bare=1.0), Instruct(questions=1))
BOTH_WAYS = TemplateConfig(bidirectional_images=True)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, None),
        ({"kinds": (TextOnly(), Instruct())}, "'entry_1'"),
        ({"kinds": (Instruct(questions=2),)}, "questions"),
        ({"kinds": (Captions(),)}, "captions"),
        ({"kinds": (Captions(captions=2, bare=0.5),)}, "captions"),
        ({"kinds": (TextOnly(), Preference())}, "answers"),
        ({"template": BOTH_WAYS}, None),
        ({"template": BOTH_WAYS, "images": 2}, "bidirectional_images"),
        ({"template": ChatTemplate("", bidirectional_images=True), "images": 2}, "bidirectional_images"),
        ({"template": PrefixTemplate()}, "PrefixTemplate"),
        ({"validation": (Preference(),)}, "answers"),
    ],
)
def test_kernels_follow_hardware_and_examples(given, names):
    given = {"kinds": PLAIN} | given
    kinds = given.pop("kinds")
    auto = experiment(*kinds, **given)
    stage = auto.stages[0]
    assert auto.kernel(stage, "tpu") == ("splash_dynamic" if names else "splash")
    assert auto.kernel(stage, "gpu") == "cudnn"
    assert auto.kernel(stage, "cpu") == "xla"
    assert experiment(*kinds, kernel="xla", **given).kernel(stage, "tpu") == "xla"
    if names is None:
        assert experiment(*kinds, kernel="splash", **given).kernel(stage, "tpu") == "splash"
        return
    with pytest.raises(UserError, match=f"stage only: attention_kernel 'splash' .*{names}.*auto") as error:
        experiment(*kinds, kernel="splash", **given)
    assert "\n" not in str(error.value)


def test_a_template_that_comes_later_counts():
    plain = experiment(*PLAIN)
    assert plain.kernel(plain.stages[0], "tpu", PrefixTemplate()) == "splash_dynamic"
    assert any(emits(plain.stages[0].data, PrefixTemplate()))


@pytest.mark.parametrize(
    ("kernel", "platform", "decoder", "says"),
    [
        ("splash", "cpu", {}, "is for TPUs and this is a CPU"),
        ("splash_dynamic", "gpu", {}, "is for TPUs and this is a GPU"),
        ("cudnn", "tpu", {}, "is for GPUs and this is a TPU"),
        ("cudnn", "gpu", {"attention_softcap": 30.0}, "no softcap"),
        ("cudnn", "gpu", {"head_size": 130}, "multiples of 8, not 130"),
    ],
)
def test_a_kernel_that_cannot_is_refused(kernel, platform, decoder, says):
    wanted = experiment(TextOnly(), kernel=kernel, **decoder)
    with pytest.raises(UserError, match=f"stage only: .*{says}.*attention-kernel"):
        wanted.kernel(wanted.stages[0], platform)
    auto = experiment(TextOnly(), **decoder)
    assert auto.kernel(auto.stages[0], platform) in ("xla", "cudnn", "splash")


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [(TextOnly(), {"sequence": 2, "tensor": 2}), (Instruct(), {"fsdp": 2, "sequence": 2})],
)
def test_the_compiler_of_tpus_takes_the_step(kind, mesh):
    """The real compiler, for chips that are not here, from a process whose own backend is the CPU."""
    layout = build_layout(MeshConfig(data=1, **mesh), absent_devices(parse_topology("v5e:2x2")))
    program = build_program(experiment(kind), 0, layout)
    assert program.one_path == isinstance(kind, TextOnly)
    text = program.lower()["step"].compile().as_text()
    segments = "_segmented" if program.one_path else ""
    for kernel in (f"splash_mha_fwd{segments}_residuals", f"splash_mha_dkv{segments}_no_residuals"):
        assert kernel in text


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_a_config_written_before_or_elsewhere_loads(kernel):
    """Runs of before there were kernels say "xla"; a model trained on TPUs is asked on any machine."""
    old = {"type": "DecoderConfig", "layers": 2, "attention_kernel": kernel}
    assert from_plain(DecoderConfig, old).attention_kernel == kernel
    assert VLM(VLMConfig(from_plain(DecoderConfig, old))).kernel == "xla"  # until a stage's program says otherwise
