import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, Request, Sampler, compilations, keep_compiled, question


@pytest.fixture(autouse=True)
def as_it_was():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compilations_are_counted():
    before = compilations()
    double = jax.jit(lambda x: 2 * x + 1)
    double(jnp.ones(7))
    between = compilations()
    assert between.compiled + between.loaded > before.compiled + before.loaded
    assert between.seconds > before.seconds
    double(jnp.ones(7))
    assert compilations() == between
    assert "programs compiled and" in str(between)


def test_prompts_of_one_bucket_with_whatever_settings_compile_once(mu):
    engine = Engine(mu.config, mu.params, mu.processor, rows=2)

    def ask(*lengths, **settings):
        before = compilations()
        requests = [Request(question("q" * length), 5, **settings) for length in lengths]
        list(engine.stream_many(requests))
        return sum(compilations()[:2]) - sum(before[:2])

    ask(20, 21)
    assert ask(22, 19) == 0
    assert ask(20, 23, sampler=Sampler(0.7, top_k=3, top_p=0.9), seed=4, stop=("x",)) == 0
    assert ask(60, 61) > 0


@pytest.mark.parametrize("variable", [None, "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_programs_are_kept_where_they_are_wanted(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    jax.config.update("jax_compilation_cache_dir", "as before")
    keep_compiled()
    expected = {
        None: tmp_path / "home" / ".cache" / "vlm-jax",
        "JAX_COMPILATION_CACHE_DIR": "as before",  # jax reads the variable itself
        "XDG_CACHE_HOME": tmp_path / "there" / "vlm-jax",
    }
    assert jax.config.jax_compilation_cache_dir == str(expected[variable])
    keep_compiled(str(tmp_path / "named"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
    keep_compiled("none")
    assert jax.config.jax_compilation_cache_dir is None


def test_a_directory_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written; name another directory, or none"):
        keep_compiled(str(tmp_path / "file" / "below"))


PROGRAM = """
import json, sys, jax, jax.numpy as jnp
from vlm_jax.generation import compilations, keep_compiled
keep_compiled(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sort(x) @ jnp.cos(x))(jnp.ones(30)).block_until_ready()
print(json.dumps(compilations()))
"""


def test_the_next_process_finds_them(tmp_path):
    def run():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    first, second = run(), run()
    assert first[0] > 0
    assert second[0] == 0
    assert second[1] == first[0] + first[1]
