"""The README tells today's truth: its first example runs as printed and prints what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_first_example_prints_what_it_says(capsys):
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    exec(compile(example, str(README), "exec"), {})
    said = float(re.search(r"# ([\d.]+)$", example, re.MULTILINE).group(1))
    assert float(capsys.readouterr().out) == pytest.approx(said, abs=0.015)  # threads round differently
