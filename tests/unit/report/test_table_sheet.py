"""Sheets are drawn aligned for a terminal, and as whole Markdown."""

from megatron_empg.report.table.sheet import Sheet


def test_plain_sheets_are_aligned_and_markdown_is_whole() -> None:
    sheet = Sheet("success in %", ["policy", "ID avg"], [["größe", "5.0"], ["日本", "100.0 [99.0, 100.0]"]])
    assert sheet.plain().splitlines() == [
        "success in %",
        "policy               ID avg",
        "---------------------------",
        "größe                   5.0",
        "日本    100.0 [99.0, 100.0]",
    ]
    voiced = Sheet("t", ["policy", "x"], [["か\u3099 e\u0301", "1"]])
    assert voiced.plain().splitlines()[3] == "か\u3099 e\u0301    1", "marks over a letter take no column"
    assert sheet.markdown().splitlines()[2:] == [
        "| policy | ID avg |",
        "| :--- | ---: |",
        "| größe | 5.0 |",
        r"| 日本 | 100.0 \[99.0, 100.0\] |",
    ]
