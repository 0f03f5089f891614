"""Memory of a process, as pages: which it has, which it wrote, which it lacks, and how these come.

``process_memory`` reads and compares a process's pages; ``write_tracking`` has the kernel tell which were
written, by a userfaultfd that the server offers (``userfault_offer``). ``pagemap`` reads and writes CRIU's
lists of pages. ``page_source`` sends missing pages to the destination, where ``page_sink`` takes them
(``page_messages``, ``batches``), besides those that are there already (``round_pages``); ``userfault`` puts
them in place in the restored process and follows its ``uffd_events``.

From outside: all of it; ``userfault_offer`` alone is imported by servers, and so imports almost nothing.
"""
