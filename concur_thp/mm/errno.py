"""Error numbers, returned negative. (Linux: include/uapi/asm-generic/errno-base.h)"""

EPERM = 1
ENOENT = 2
ESRCH = 3
EAGAIN = 11
ENOMEM = 12
EACCES = 13
EFAULT = 14
EBUSY = 16
EEXIST = 17
EINVAL = 22
EHWPOISON = 133

ERRNO_NAMES = {value: name for name, value in list(globals().items()) if name[:1] == "E" and isinstance(value, int)}
