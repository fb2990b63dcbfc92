"""The report of a failure as one file that needs nothing else: HTML without scripts, from rows of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ page.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #222; background: #fff; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.8em; border-bottom: 1px solid #ccc; }
pre { font: 13px/1.35 ui-monospace, monospace; overflow-x: auto; background: #f6f6f4; padding: .8em; }
table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; padding: .15em .9em .15em 0; vertical-align: top; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; } .bad { color: #a00; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b; } pre { background: #262626; } .bad { color: #f77; } }
</style></head><body>
<h1>{{ page.title }}</h1>
<p class="bad">{{ page.symptom }}</p>
{% if page.facts %}<table>{% for name, value in page.facts.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</table>{% endif %}
{% if page.again %}<p>Again: <code>{{ page.again }}</code></p>{% endif %}
{% for name, text in page.texts.items() if text %}
<h2>{{ name }}</h2>
<pre>{{ text }}</pre>
{% endfor %}
{% if page.schedule %}<h2>Schedule</h2>
<table><tr><th>CPU</th><th>points</th><th>then</th><th>before the statement</th><th>at</th></tr>{% for row in page.schedule %}
<tr><td>{{ row.cpu }}</td><td>{{ row.steps }}</td><td>{{ row.reason }}</td><td><code>{{ row.statement }}</code></td>
<td>{{ row.function }} {{ row.at }}</td></tr>{% endfor %}
</table>{% endif %}
</body></html>
"""


@dataclass
class ReportPage:
    """What stands in a report."""

    title: str
    symptom: str
    facts: Mapping[str, str] = field(default_factory=dict)
    again: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Heading -> text as it is: the chart, the dump, the events."""
    schedule: Sequence[Mapping[str, object]] = ()


def report_html(page: ReportPage) -> str:
    """The file's text."""
    return Environment(autoescape=True).from_string(TEMPLATE).render(page=page)


__all__ = ["ReportPage", "report_html"]
