"""The doctor: tool-calling checks against any OpenAI-compatible endpoint, and a scorecard with the evidence.

It asks over the wire and reads what comes back byte for byte. It shares no code with the proxy that it examines,
and judging does no input or output: what was recorded once can be judged again.

Reading order: sse -> said, patience -> exchange -> findings -> client -> probe, rule -> the checks and rules ->
battery -> report, progress -> run.
"""

from proxy.doctor.client import Unfit
from proxy.doctor.findings import Verdict
from proxy.doctor.progress import Tell, progress_on
from proxy.doctor.report import Scorecard, as_json, as_text
from proxy.doctor.run import examine

__all__ = ["Scorecard", "Tell", "Unfit", "Verdict", "as_json", "as_text", "examine", "progress_on"]
