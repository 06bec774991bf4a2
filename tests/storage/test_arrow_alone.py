"""A process that forgoes pandas does not load it, whatever pyarrow is asked for."""

import subprocess
import sys
import textwrap

SCRIPT = """
    import sys
    from storage.arrow_alone import forgo_pandas
    forgo_pandas()
    import pyarrow as pa
    assert pa.array(["a", None]).to_pylist() == ["a", None]
    print("pandas" in sys.modules)
"""


def test_pandas_stays_out_of_a_process_that_forgoes_it() -> None:
    command = [sys.executable, "-P", "-c", textwrap.dedent(SCRIPT)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
