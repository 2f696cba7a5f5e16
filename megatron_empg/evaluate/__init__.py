"""An evaluation to trust: what was asked, every outcome, and how sure its figures are.

`options` and `questions` say what is asked, `policies` of whom, `play` asks, `record` keeps every outcome;
`intervals`, `figures` and `comparison` say what they amount to; `table` and `document` show it.
"""
