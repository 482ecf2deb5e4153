from experiments.markdown import markdown_table


def test_markdown_table_has_header_rule_and_a_line_for_each_row():
    lines = markdown_table(("", "nats", "rounds"), [("cifg", "4.10", 20), ["transformer", "", 5]])
    assert lines == ["| | nats | rounds |", "|---|---|---|", "| cifg | 4.10 | 20 |", "| transformer |  | 5 |"]


def test_markdown_table_without_rows_is_its_header():
    assert markdown_table(["ε"], iter(())) == ["| ε |", "|---|"]
