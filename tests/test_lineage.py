"""What a figure rests on: the slice holds what led to it, and not what merely stands above it."""

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from losslandscape.report.lineage import lineage

PARAMETERS = {"dataset": "digits", "seeds": 3, "images": 100}


def rests_on(*cells, parameters=PARAMETERS):
    notebook = new_notebook(cells=[new_code_cell(text) for text in cells])
    return lineage(notebook, len(cells) - 1, parameters)


IMPORTS = "import losslandscape as ll\nfrom losslandscape.report import claims"
LOAD = "data = ll.load_dataset(dataset)"
READ = 'runs = claims.Evidence().rows("end_points", claims.ROWS)'


def test_live_data_and_the_parameters_that_matter():
    found = rests_on(IMPORTS, LOAD, "values = [f(data, seed) for seed in range(seeds)]", "values")
    assert found.cells == (1, 2, 3)
    assert found.parameters == {"dataset": "digits", "seeds": 3}
    assert str(found) == "Live: digits (seeds = 3)"


def test_records_by_name_and_by_a_function_that_reads_them():
    assert str(rests_on(LOAD, READ, "draw(runs)")) == "Recorded: end_points"
    by_function = rests_on(IMPORTS, "b = claims.noise_slopes(evidence)", "draw(b)")
    assert by_function.studies == ("end_points",)


def test_records_of_the_benchmarks():
    found = rests_on("found = running.recorded(root, scale.RANKS)", "draw(found)")
    assert str(found) == "Recorded: benchmarks"


def test_the_plan_of_a_study_is_no_record_of_it():
    assert rests_on('plan = find_study("end_points")', "draw(plan)").studies == ()


def test_a_closed_form_rests_on_no_data():
    assert str(rests_on(LOAD, "x = np.linspace(0, 1)", "draw(x)")) == (
        "Computed here, without a data set"
    )


def test_a_name_bound_anew_cuts_what_was_before():
    found = rests_on(READ, "rows = {}\nrows[0] = runs", LOAD, "rows = {}\nrows[0] = data", "rows")
    assert found.cells == (2, 3, 4)
    assert found.studies == ()


def test_a_name_bound_anew_in_the_last_cell_cuts_too():
    found = rests_on(
        READ, "rows = {}\nfor r in runs:\n    rows[r] = r", LOAD, "rows = {}\nrows[0] = data\nrows"
    )
    assert found.cells == (2, 3)
    assert found.studies == ()


def test_a_function_may_name_its_study_by_a_constant_of_its_module():
    for call in ("sweep.load_sweep(evidence, 'clean')", "falsifiers.falsify(evidence)"):
        assert rests_on(f"found = {call}", "found").studies == ("validation_sweep",), call
    assert rests_on("tau = sweep.kendall_tau(m, t)", "tau").studies == ()


def test_a_verdict_rests_on_what_its_rule_reads():
    cells = [
        "evidence = claims.Evidence()",
        "v = [claims.judge(c, evidence) for c in ('C5',)]",
        "v",
    ]
    notebook = new_notebook(cells=[new_code_cell(text) for text in cells])
    judged = {"C5": ["validation_sweep"], "C18": ["three_configurations"]}
    assert lineage(notebook, 2, {}, judged).studies == ("validation_sweep",)
    assert lineage(notebook, 2, {}).studies == ()


def test_a_loop_variable_of_another_loop_does_not_count():
    found = rests_on(
        READ, "for name in runs:\n    pass", "table = [name for name in ROWS]", "table"
    )
    assert found.cells == (2, 3)
    again = rests_on(READ, "for name in runs:\n    pass", "for name in ROWS:\n    t = name", "t")
    assert again.cells == (2, 3)


def test_objects_that_are_changed_keep_what_they_were():
    for change in (
        "table.append(data)",
        "table['x'] = data",
        "table.x = data",
        "fill(table, data)",
    ):
        found = rests_on(READ, "table = runs", LOAD, change, "table")
        assert found.cells == (0, 1, 2, 3, 4), change
    assert rests_on(READ, "table = runs", LOAD, "print(table, data)", "table").cells == (0, 1, 4)


def test_a_binding_on_one_path_only_keeps_the_other():
    found = rests_on(READ, LOAD, "x = runs", "if seeds:\n    x = data", "x")
    assert found.cells == (0, 1, 2, 3, 4)


def test_functions_bring_along_what_they_read():
    found = rests_on(LOAD, "def mean():\n    local = data\n    return local", "y = mean()", "y")
    assert found.cells == (0, 1, 2, 3)


def test_positions_count_text_cells_too():
    cells = [new_markdown_cell("text"), new_code_cell(LOAD), new_code_cell("data")]
    assert lineage(new_notebook(cells=cells), 2, PARAMETERS).cells == (1, 2)
