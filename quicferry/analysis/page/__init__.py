"""The report over a sweep or several runs: one self-contained page with figures that can be zoomed.

============ ===============================================================================
``write``    the page: ``write_page``; ``save_figures`` writes the same figures for papers
``groups``   runs put together by combination, with what is known of each
``words``    the summary in sentences, and warnings
``charts``   figures over all runs, with plotly
``moves``    the timeline of one run, with each packet's frames under the pointer
============ ===============================================================================

Each may import what stands below it. The library that draws (plotly.js) is part of the page, so that it needs
no network.
"""
