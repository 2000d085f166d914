"""`python -m docs.pictures`: write every picture of the documents."""

from docs.pictures import FOLDER, PICTURES

for name, draw in PICTURES.items():
    path = FOLDER / f"{name}.svg"
    path.write_text(draw().svg(), "utf-8")
    print(f"{path.relative_to(FOLDER.parent.parent)}: {path.stat().st_size:,} bytes")
