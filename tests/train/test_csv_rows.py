"""CSV as spreadsheets and pandas write it."""

import csv
import json
import threading
from pathlib import Path

import pytest

from tinygrad_peft.errors import DataError
from tinygrad_peft.train.csv_rows import read_csv
from tinygrad_peft.train.examples import ClassificationExample, read_examples

TWO = [ClassificationExample("good film", "pos"), ClassificationExample("bad film", "neg")]


def examples(folder: Path, content: str, name: str = "a.csv") -> list[ClassificationExample]:
    path = folder / name
    path.write_bytes(content.encode())
    return read_examples(path, "sequence-classification")


@pytest.mark.parametrize(
    "content",
    [
        "text,label,,\ngood film,pos,,\nbad film,neg,,\n",  # blank columns
        "text,label\ngood film,pos,\nbad film,neg,,\n",  # blank cells at the end
        "text,label\n\ngood film,pos\n,\nbad film,neg\n , \n,,,\n",  # blank rows
        ",,text,label\n0,0,good film,pos\n1,1,bad film,neg\n",  # two index columns
        "Unnamed: 0,text,Unnamed: 2,label\n0,good film,,pos\n1,bad film,,neg\n",
        "\ufefftext,label\r\ngood film,pos\r\nbad film,neg\r\n",
        "text,label\rgood film,pos\rbad film,neg\r",  # line ends of old spreadsheets
        "text;label\ngood film;pos\nbad film;neg\n",
        "text\tlabel\ngood film\tpos\nbad film\tneg\n",
        '\ufeffsep=;\r\n"text";"label"\r\n"good film";"pos"\r\n"bad film";"neg"\r\n',
        "sep=\t\ntext\tlabel\ngood film\tpos\nbad film\tneg\n",
        "sep=|\ntext|label\ngood film|pos\nbad film|neg\n",
        " text , label \ngood film,pos\nbad film, neg\n",
        ",,\ntext,label,\ngood film,pos,\nbad film,neg,\n",  # a blank row above the header
    ],
)
def test_tables_of_spreadsheets_and_pandas_give_their_examples(
    tmp_path: Path, content: str
) -> None:
    assert examples(tmp_path, content) == TWO


def test_a_file_of_tab_separated_values_is_read(tmp_path: Path) -> None:
    assert examples(tmp_path, "text\tlabel\ngood film\tpos\nbad film\tneg\n", "a.TSV") == TWO


def test_commas_in_a_text_do_not_outweigh_the_delimiter_of_the_header(tmp_path: Path) -> None:
    content = "text;label\ngood, very good, so good;pos\n"
    assert examples(tmp_path, content)[0].text == "good, very good, so good"


def test_a_cell_may_be_as_long_as_its_text_in_json_lines(tmp_path: Path) -> None:
    long = "word " * 30_000
    row = json.dumps({"text": long, "label": "pos"})
    from_csv = examples(tmp_path, f"text,label\n{long},pos\n")
    assert from_csv == examples(tmp_path, row, "a.jsonl")
    assert len(from_csv[0].text) == 150_000


def test_threads_read_long_cells_and_leave_the_limit_of_the_csv_module_alone() -> None:
    before, lengths = csv.field_size_limit(), [140_000 + 1000 * i for i in range(8)]
    found: dict[int, int] = {}

    def read(length: int) -> None:
        for _ in range(5):
            [(_, cells)] = read_csv("text,label\n" + "x" * length + ",pos\n").rows
            found[length] = len(cells[0])

    threads = [threading.Thread(target=read, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {length: length for length in lengths}
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        # An unquoted comma has shifted the cells: nothing is guessed.
        (
            "text,label,\nwell, good film,pos\n",
            "line 2: expected 2 columns as in the header, got 3",
        ),
        ("text,label,note\ngood,pos\n", "line 2: expected 3 columns as in the header, got 2"),
        ("text,label,label,\nx,y,z,\n", "line 1: not CSV: given more than once: 'label'"),
        ("sep=;\ntext;label\n\nx;y;z\n", "line 4: expected 2 columns as in the header, got 3"),
        ('sep=;\ntext;label\n"x;y', "line 3: not CSV: unexpected end of data"),
        ("text,label\n,pos\n", "line 2: 'text' is empty"),
    ],
)
def test_rows_that_would_have_to_be_guessed_are_refused_with_their_line(
    tmp_path: Path, content: str, told: str
) -> None:
    with pytest.raises(DataError) as caught:
        examples(tmp_path, content)
    assert told in str(caught.value)
