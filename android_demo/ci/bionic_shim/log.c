/* liblog.so: Android's log, to stderr. */
#include <stdarg.h>
#include <stdio.h>

int __android_log_vprint(int priority, const char *tag, const char *format, va_list list) {
  fprintf(stderr, "[%d] %s: ", priority, tag ? tag : "");
  int written = vfprintf(stderr, format, list);
  fputc('\n', stderr);
  return written;
}

int __android_log_print(int priority, const char *tag, const char *format, ...) {
  va_list list;
  va_start(list, format);
  int written = __android_log_vprint(priority, tag, format, list);
  va_end(list);
  return written;
}

int __android_log_write(int priority, const char *tag, const char *text) {
  return fprintf(stderr, "[%d] %s: %s\n", priority, tag ? tag : "", text);
}
