"""What the README shows works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_learns(tmp_path: Path):
    example, reading = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = example + (
        'pair = pairs[1]["weight"]\n'
        "for n in (0, 17):\n"
        "    alone = jbp.value_and_grad(net, loss)(params, x[n : n + 1], y[n : n + 1])[1]\n"
        '    assert abs(pair.h[n].T @ pair.delta[n] - alone[1]["weight"]).max() < 1e-5\n'
    )
    run = [sys.executable, "-W", "error", "-c", code + reading]
    out = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) > 0.95
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 20


def test_files_and_targets_that_it_names_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z]+)", README):
        assert f"\n{name}:" in makefile, name
