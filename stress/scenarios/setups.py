"""What scenarios begin with, and the errors that they speak of."""

from concur_thp.mm import errno

EBUSY, EAGAIN, EFAULT, EHWPOISON, ESRCH = -errno.EBUSY, -errno.EAGAIN, -errno.EFAULT, -errno.EHWPOISON, -errno.ESRCH
ENOMEM = -errno.ENOMEM

MAPPED = "new 0; enter 0; map 0 1h rw\n"
"""One block of a process's memory, nothing in it."""
HUGE = MAPPED + "fill 0 1h 100; drain; note 0 0\n"
"""The same with a huge page, its pages numbered from 100; frame 0 is its head."""
SMALL = MAPPED + "advise 0 1h nohuge; fill 0 1h 100; advise 0 1h huge; drain; note 0 3\n"
"""The same with small pages that khugepaged may collapse; frame 0 is the page at 3."""
SHARED = HUGE + "fork 1\n"
"""A huge page that a parent in space 0 and its child in space 1 share."""
