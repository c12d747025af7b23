/* Lets Android's own libtensorflowlite_jni.so, byte for byte the one in the APK, load into a process of ordinary Linux:
 * a JVM on x86_64, or a C program under qemu-aarch64. For tests; never part of the app.
 *
 * The library asks for libc.so, libm.so, libdl.so and liblog.so, and for their symbols at the version LIBC. The loader
 * of glibc matches libraries by name and symbols by version, so four small libraries of those names will do. Most symbols
 * are handed on to glibc by a jump, which chain.py writes from the list of those that are undefined; those whose
 * meaning differs between the two C libraries are here. What is the kernel's (struct stat, flags of open, clock ids) is
 * the same in both. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* With one @ the symbol is not the default: inside this library the plain name still means glibc's. */
#define WRAPS(name) __asm__(".symver shim_" #name "," #name "@LIBC")

int *shim___errno(void) { return __errno_location(); }
WRAPS(__errno);

size_t shim___strlen_chk(const char *text, size_t room) {
  size_t length = strlen(text);
  if (length >= room) abort();
  return length;
}
WRAPS(__strlen_chk);

/* The level of Android alone, which the library asks for: below 20 it leaves XNNPACK out, as no phone does. */
int shim___system_property_get(const char *name, char *value) {
  strcpy(value, strcmp(name, "ro.build.version.sdk") ? "" : "35");
  return (int)strlen(value);
}
WRAPS(__system_property_get);

/* Bionic looks in the library that asks, too, where a name is looked for everywhere. */
void *shim_dlsym(void *library, const char *name) {
  Dl_info asks;
  if (library == RTLD_DEFAULT && dladdr(__builtin_return_address(0), &asks)) {
    void *own = dlopen(asks.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    void *found = own ? dlsym(own, name) : NULL;
    if (own) dlclose(own);
    if (found) return found;
  }
  return dlsym(library, name);
}
WRAPS(dlsym);

/* XNNPACK's kernels for AVX-512 read what it allocates as if it lay on lines of 64 bytes. Phones have none of them. */
enum { LINE = 64 };
void *shim_memalign(size_t alignment, size_t size) {
  void *memory = NULL;
  return posix_memalign(&memory, alignment < LINE ? LINE : alignment, size) ? NULL : memory;
}
WRAPS(memalign);

void *shim_malloc(size_t size) { return shim_memalign(LINE, size); }
WRAPS(malloc);

void *shim_calloc(size_t count, size_t size) {
  size_t whole;
  if (__builtin_mul_overflow(count, size, &whole)) return NULL;
  void *memory = shim_malloc(whole);
  return memory ? memset(memory, 0, whole) : NULL;
}
WRAPS(calloc);

void shim_android_set_abort_message(const char *message) { fprintf(stderr, "abort: %s\n", message ? message : ""); }
WRAPS(android_set_abort_message);

int __xpg_strerror_r(int, char *, size_t);
int shim_strerror_r(int number, char *text, size_t room) { return __xpg_strerror_r(number, text, room); }
WRAPS(strerror_r);

/* The questions have other numbers in bionic. */
long shim_sysconf(int question) {
  switch (question) {
    case 0x0006: return sysconf(_SC_CLK_TCK);
    case 0x0027:
    case 0x0028: return sysconf(_SC_PAGESIZE);
    case 0x0060: return sysconf(_SC_NPROCESSORS_CONF);
    case 0x0061: return sysconf(_SC_NPROCESSORS_ONLN);
    case 0x0062: return sysconf(_SC_PHYS_PAGES);
    case 0x0063: return sysconf(_SC_AVPHYS_PAGES);
    default:
      fprintf(stderr, "bionic shim: sysconf(0x%x) is not known\n", question);
      errno = EINVAL;
      return -1;
  }
}
WRAPS(sysconf);

/* stdin, stdout and stderr are the entries of an array of 152 bytes each. */
char shim___sF[3][152];
WRAPS(__sF);

static FILE *stream(void *file) {
  if (file == shim___sF[0]) return stdin;
  if (file == shim___sF[1]) return stdout;
  if (file == shim___sF[2]) return stderr;
  return file;
}

int shim_vfprintf(void *file, const char *format, va_list list) { return vfprintf(stream(file), format, list); }
WRAPS(vfprintf);

int shim_fprintf(void *file, const char *format, ...) {
  va_list list;
  va_start(list, format);
  int result = vfprintf(stream(file), format, list);
  va_end(list);
  return result;
}
WRAPS(fprintf);

int shim_fputc(int c, void *file) { return fputc(c, stream(file)); }
WRAPS(fputc);
int shim_fflush(void *file) { return fflush(file ? stream(file) : NULL); }
WRAPS(fflush);
int shim_fileno(void *file) { return fileno(stream(file)); }
WRAPS(fileno);
int shim_fclose(void *file) { return fclose(stream(file)); }
WRAPS(fclose);
size_t shim_fread(void *to, size_t size, size_t count, void *file) { return fread(to, size, count, stream(file)); }
WRAPS(fread);
size_t shim_fwrite(const void *from, size_t size, size_t count, void *file) {
  return fwrite(from, size, count, stream(file));
}
WRAPS(fwrite);

/* Locks are arrays of int32 in bionic: aligned to 4 bytes where glibc wants 8, and on arm64 smaller than glibc's. So
 * their first aligned 8 bytes hold a pointer to a lock of glibc's, made when it is first used. All that the library
 * initialises statically is zero. */
#define SLOT(type, lock) ((type **)(((uintptr_t)(lock) + 7) & ~(uintptr_t)7))
#define LOCK(type, init)                                                                            \
  static type *get_##type(void *lock) {                                                            \
    type **slot = SLOT(type, lock), *made = __atomic_load_n(slot, __ATOMIC_ACQUIRE), *none = NULL; \
    if (made) return made;                                                                         \
    made = malloc(sizeof *made);                                                                   \
    init(made, NULL);                                                                              \
    if (__atomic_compare_exchange_n(slot, &none, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))     \
      return made;                                                                                 \
    free(made);                                                                                    \
    return none;                                                                                   \
  }
LOCK(pthread_mutex_t, pthread_mutex_init)
LOCK(pthread_cond_t, pthread_cond_init)
LOCK(pthread_rwlock_t, pthread_rwlock_init)

int shim_pthread_mutex_init(void *mutex, const void *attributes) {
  (void)attributes;
  *SLOT(pthread_mutex_t, mutex) = NULL;
  return 0;
}
WRAPS(pthread_mutex_init);
int shim_pthread_mutex_destroy(void *mutex) {
  free(*SLOT(pthread_mutex_t, mutex));
  *SLOT(pthread_mutex_t, mutex) = NULL;
  return 0;
}
WRAPS(pthread_mutex_destroy);
int shim_pthread_mutex_lock(void *mutex) { return pthread_mutex_lock(get_pthread_mutex_t(mutex)); }
WRAPS(pthread_mutex_lock);
int shim_pthread_mutex_unlock(void *mutex) { return pthread_mutex_unlock(get_pthread_mutex_t(mutex)); }
WRAPS(pthread_mutex_unlock);
int shim_pthread_cond_wait(void *condition, void *mutex) {
  return pthread_cond_wait(get_pthread_cond_t(condition), get_pthread_mutex_t(mutex));
}
WRAPS(pthread_cond_wait);
int shim_pthread_cond_signal(void *condition) { return pthread_cond_signal(get_pthread_cond_t(condition)); }
WRAPS(pthread_cond_signal);
int shim_pthread_cond_broadcast(void *condition) { return pthread_cond_broadcast(get_pthread_cond_t(condition)); }
WRAPS(pthread_cond_broadcast);
int shim_pthread_cond_destroy(void *condition) {
  free(*SLOT(pthread_cond_t, condition));
  *SLOT(pthread_cond_t, condition) = NULL;
  return 0;
}
WRAPS(pthread_cond_destroy);
int shim_pthread_rwlock_rdlock(void *lock) { return pthread_rwlock_rdlock(get_pthread_rwlock_t(lock)); }
WRAPS(pthread_rwlock_rdlock);
int shim_pthread_rwlock_wrlock(void *lock) { return pthread_rwlock_wrlock(get_pthread_rwlock_t(lock)); }
WRAPS(pthread_rwlock_wrlock);
int shim_pthread_rwlock_unlock(void *lock) { return pthread_rwlock_unlock(get_pthread_rwlock_t(lock)); }
WRAPS(pthread_rwlock_unlock);
