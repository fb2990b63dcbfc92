"""The report as one file: everything in it, nothing of it taken for markup, nothing fetched."""

from html.parser import HTMLParser

from concur_thp.trace.html import ReportPage, report_html


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_report_is_whole_and_needs_nothing_else():
    schedule = [{"cpu": 1, "steps": 7, "reason": "preempt", "statement": "if a < b", "function": "f", "at": "f.py:1"}]
    page = ReportPage("explore x", "outcome: 1 < 2 <b>", {"order": "3"}, "concur-thp replay thp1-x",
                      {"What happened": "CPU0\n  <- pmd", "Nothing": ""}, schedule)
    text = report_html(page)
    tags = Tags()
    tags.feed(text)
    assert not tags.open and "script" not in tags.seen and "link" not in tags.seen and "b" not in tags.seen
    for part in ("outcome: 1 < 2 <b>", "  <- pmd", "if a < b", "thp1-x", "f.py:1"):
        assert part in tags.text
    assert "Nothing" not in tags.text and "http" not in text
