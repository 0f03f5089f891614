"""Instruments that do not pick: what they run is drawn, not chosen by the hand that wrote the code.

``explore`` draws whole command lines from the axes' one definition and judges what becomes of them,
``fuzz`` gives every decoder bytes that nobody thought of. See docs/explore.md.
"""
