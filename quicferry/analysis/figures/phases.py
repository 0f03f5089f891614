"""The colours of a move's phases, which are the same in every picture and page.

They need no library: a page is drawn without matplotlib.
"""

PHASE_COLOURS = {
    "notice": "#cc79a7",
    "checkpoint": "#e69f00",
    "transfer": "#56b4e9",
    "restore": "#f0e442",
    "commit": "#b8bec6",
}
