/* run MODEL PIXELS EXPECTED COUNT MEAN STD
 *
 * Runs images through the AAR's own arm64-v8a library, the one that phones run, by TFLite's C API, and says how far
 * its outputs are from the expected ones. Pixels are bytes, expected outputs float32. For qemu-aarch64. */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Android's C library keeps the stack guard at 0x28 behind the thread pointer, where glibc puts this program's own
 * thread-local data: that place is taken here, and never written to again. */
__thread long guard[32] __attribute__((aligned(16))) = {1};

enum { FLOAT32 = 1, UINT8 = 3, INT8 = 9 };
typedef struct {
  float scale;
  int32_t zero_point;
} Quantization;

/* What XNNPACK is told: a struct of the library's own, which is smaller. */
typedef struct {
  char content[256];
} Delegate;

static void *library;

static void *function(const char *name) {
  void *found = dlsym(library, name);
  if (!found) {
    fprintf(stderr, "no %s\n", name);
    exit(2);
  }
  return found;
}
#define CALL(result, name, ...) ((result(*)(__VA_ARGS__))function("TfLite" #name))

static void *content(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    perror(path);
    exit(2);
  }
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  void *data = malloc(*size);
  if (fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

int main(int count, char **arguments) {
  guard[1] = 1;
  if (count != 7) return 2;
  library = dlopen("libtensorflowlite_jni.so", RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  size_t pixel_bytes, expected_bytes;
  uint8_t *pixels = content(arguments[2], &pixel_bytes);
  float *expected = content(arguments[3], &expected_bytes);
  int images = atoi(arguments[4]);
  float mean = atof(arguments[5]), std = atof(arguments[6]);
  void *model = CALL(void *, ModelCreateFromFile, const char *)(arguments[1]);
  void *options = CALL(void *, InterpreterOptionsCreate, void)();
  /* As the library does on a phone, where the app asks through Java. */
  Delegate settings = CALL(Delegate, XNNPackDelegateOptionsDefault, void)();
  void *delegate = CALL(void *, XNNPackDelegateCreate, const Delegate *)(&settings);
  CALL(void, InterpreterOptionsAddDelegate, void *, void *)(options, delegate);
  void *interpreter = model ? CALL(void *, InterpreterCreate, void *, void *)(model, options) : NULL;
  if (!interpreter || CALL(int, InterpreterAllocateTensors, void *)(interpreter)) {
    fprintf(stderr, "the model cannot be loaded\n");
    return 3;
  }
  void *input = CALL(void *, InterpreterGetInputTensor, void *, int)(interpreter, 0);
  const void *output = CALL(const void *, InterpreterGetOutputTensor, void *, int)(interpreter, 0);
  int in_type = CALL(int, TensorType, const void *)(input), out_type = CALL(int, TensorType, const void *)(output);
  Quantization in_steps = CALL(Quantization, TensorQuantizationParams, const void *)(input);
  Quantization out_steps = CALL(Quantization, TensorQuantizationParams, const void *)(output);
  size_t in_bytes = CALL(size_t, TensorByteSize, const void *)(input);
  size_t out_bytes = CALL(size_t, TensorByteSize, const void *)(output);
  size_t in_size = in_bytes / (in_type == FLOAT32 ? 4 : 1), out_size = out_bytes / (out_type == FLOAT32 ? 4 : 1);
  void *in_data = malloc(in_bytes), *out_data = malloc(out_bytes);
  float worst = 0;
  int same = 0, unequal = 0;
  for (int image = 0; image < images; image++) {
    for (size_t i = 0; i < in_size; i++) {
      float value = (pixels[image * in_size + i] - mean) / std;
      if (in_type == FLOAT32) {
        ((float *)in_data)[i] = value;
      } else {
        long level = lrint((double)value / in_steps.scale) + in_steps.zero_point;
        long low = in_type == INT8 ? -128 : 0;
        ((uint8_t *)in_data)[i] = level < low ? low : level > low + 255 ? low + 255 : level;
      }
    }
    CALL(int, TensorCopyFromBuffer, void *, const void *, size_t)(input, in_data, in_bytes);
    if (CALL(int, InterpreterInvoke, void *)(interpreter)) return 4;
    CALL(int, TensorCopyToBuffer, const void *, void *, size_t)(output, out_data, out_bytes);
    size_t best = 0, wanted_best = 0;
    float told[out_size];
    const float *wanted = expected + image * out_size;
    for (size_t i = 0; i < out_size; i++) {
      if (out_type == FLOAT32) told[i] = ((float *)out_data)[i];
      else {
        int level = out_type == INT8 ? ((int8_t *)out_data)[i] : ((uint8_t *)out_data)[i];
        told[i] = (level - out_steps.zero_point) * out_steps.scale;
      }
      /* Written so that a NaN counts. */
      if (!(fabsf(told[i] - wanted[i]) <= worst)) worst = fabsf(told[i] - wanted[i]);
      unequal += told[i] != wanted[i];
      if (told[i] > told[best]) best = i;
      if (wanted[i] > wanted[wanted_best]) wanted_best = i;
    }
    same += best == wanted_best;
  }
  printf("%s %d %d %d %.9g\n", CALL(const char *, Version, void)(), images, same, unequal, worst);
  return 0;
}
