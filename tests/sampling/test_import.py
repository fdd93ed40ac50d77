"""`moteur.sampling` needs no torch."""

import subprocess
import sys


def test_a_fresh_process_that_assigns_and_samples_imports_the_standard_library_and_numpy_at_most() -> None:
    code = (
        "import sys\n"
        "from moteur.sampling import EpochOrder, Sampler, WeightedOrder, assign\n"
        "assign({'a': 3, 'b': 2}, 2)\n"
        "next(iter(Sampler(WeightedOrder({'a': 3}, {'a': 1.0}))))\n"
        "list(Sampler(EpochOrder({'a': 3})))\n"
        "own = set(sys.stdlib_module_names) | {'moteur', 'numpy', 'cython_runtime', '__main__'}\n"
        "print(sorted(name for name in {m.partition('.')[0] for m in sys.modules} - own if not name.startswith('_')))"
    )
    run = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path = {sys.path!r}\n{code}"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter, fixed code
    assert done.stdout.strip() == "[]"
