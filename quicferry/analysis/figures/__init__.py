"""Draws what was analysed, with matplotlib; nothing here measures, and ``analyse`` never imports it.

================== ==================================================================
``timeline``       the move of one run in lanes: ``timeline_figure``, ``save_timeline``
``breakdown_bars`` the strip in it that shows what a service-migration time is made of
``comparison``     bars and delivery gaps over many runs: ``save_comparison``
``papers``         stacked phases and distributions over many runs
``phases``         the colours of a move's phases
``style``          colours, fonts, sizes; a figure as a file or as part of a page
================== ==================================================================

matplotlib takes half a second to load: import these modules where a picture is made, not before.
"""

import logging

# before it is imported: it tells of a home that cannot be written to, and does without
logging.getLogger("matplotlib").setLevel(logging.ERROR)
