"""Reads and writes capture files, block by block, in constant memory.

``blocks`` reads pcap and pcapng of either byte order, ``pcap_format`` and ``pcapng_format`` are their
layouts, ``links`` finds the IP packet in a frame of each link type, and ``ip`` finds UDP and TCP in an IP
packet, through extension headers, fragments and ICMP errors.
"""

from quicferry.capture.files.blocks import CaptureReader
from quicferry.capture.files.source import Gap, Record

__all__ = ["CaptureReader", "Gap", "Record"]
