"""What commands share: ``axes`` makes options, ``output`` is stdout, stderr and errors as messages,
``progress`` draws a bar while runs are performed, ``results`` prints tables and writes pages,
``sweeping`` makes the runs of a sweep.

Imported by the command modules of ``cli`` and by ``bench``.
"""
