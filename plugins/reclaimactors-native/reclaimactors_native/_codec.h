/* What a thread does with the bytes of a page: compress, and crc32. No Python beyond finding it. */
#pragma once
#include <Python.h>

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

enum { ZSTD_LEVEL = 100 }; /* ZSTD_c_compressionLevel */

/* -- crc32, as zlib's, eight bytes at a step ---------------------------------------------------- */

static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        crc_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int k = 1; k < 8; k++) {
            uint32_t crc = crc_table[k - 1][byte];
            crc_table[k][byte] = crc >> 8 ^ crc_table[0][crc & 0xFF];
        }
}

static uint32_t load32(const unsigned char *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t crc32_of(const void *data, size_t size)
{
    const unsigned char *at = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, at += 8) {
        uint32_t one = load32(at) ^ crc, two = load32(at + 4);
        crc = crc_table[7][one & 0xFF] ^ crc_table[6][one >> 8 & 0xFF] ^
              crc_table[5][one >> 16 & 0xFF] ^ crc_table[4][one >> 24] ^
              crc_table[3][two & 0xFF] ^ crc_table[2][two >> 8 & 0xFF] ^
              crc_table[1][two >> 16 & 0xFF] ^ crc_table[0][two >> 24];
    }
    while (size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *at++) & 0xFF];
    return ~crc;
}

/* -- the two libraries -------------------------------------------------------------------------- */

/* The functions that the Python packages call as well. `context` is a thread's own. */
typedef struct {
    int zstd, level;
    void *(*create)(void);
    void (*free)(void *); /* what it returns is of no use */
    int (*lz4_bound)(int);
    void (*lz4_reset)(void *);
    int (*lz4_compress)(void *, const char *, char *, int, int, int);
    size_t (*zstd_bound)(size_t);
    size_t (*zstd_set)(void *, int, int);
    size_t (*zstd_compress)(void *, void *, size_t, const void *, size_t);
    unsigned (*zstd_is_error)(size_t);
    const char *(*zstd_words)(size_t);
} Codec;

typedef struct {
    const char *name;
    void *slot;
} Symbol;

/* Find the functions of a codec in the library at a path; return -1 with a LookupError set. */
static int find_codec(Codec *codec, const char *name, const char *path, int level)
{
    const Symbol lz4[] = {
        {"LZ4_createStream", &codec->create},
        {"LZ4_freeStream", &codec->free},
        {"LZ4_compressBound", &codec->lz4_bound},
        {"LZ4_resetStream", &codec->lz4_reset},
        {"LZ4_compress_fast_continue", &codec->lz4_compress},
        {NULL, NULL},
    };
    const Symbol zstd[] = {
        {"ZSTD_createCCtx", &codec->create},
        {"ZSTD_freeCCtx", &codec->free},
        {"ZSTD_compressBound", &codec->zstd_bound},
        {"ZSTD_CCtx_setParameter", &codec->zstd_set},
        {"ZSTD_compress2", &codec->zstd_compress},
        {"ZSTD_isError", &codec->zstd_is_error},
        {"ZSTD_getErrorName", &codec->zstd_words},
        {NULL, NULL},
    };
    codec->zstd = strcmp(name, "zstd") == 0;
    codec->level = level;
    if (!codec->zstd && strcmp(name, "lz4") != 0) {
        PyErr_Format(PyExc_LookupError, "no codec %s; known: lz4, zstd", name);
        return -1;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* for ever: threads run its code */
    if (library == NULL) {
        PyErr_Format(PyExc_LookupError, "%s cannot be opened: %s", path, dlerror());
        return -1;
    }
    for (const Symbol *symbol = codec->zstd ? zstd : lz4; symbol->name != NULL; symbol++) {
        void *function = dlsym(library, symbol->name);
        if (function == NULL) {
            PyErr_Format(PyExc_LookupError, "%s does not export %s", path, symbol->name);
            return -1;
        }
        memcpy(symbol->slot, &function, sizeof function); /* ISO C has no such cast */
    }
    return 0;
}

/* Return what a thread needs for itself, NULL where there is no memory for it. */
static void *codec_begin(const Codec *codec)
{
    void *context = codec->create();
    if (context != NULL && codec->zstd)
        codec->zstd_set(context, ZSTD_LEVEL, codec->level); /* it was tried out before */
    return context;
}

static void codec_end(const Codec *codec, void *context)
{
    if (context != NULL)
        codec->free(context);
}

/* Return the size of the largest blob of so many bytes; 0 where they are too many for lz4. */
static size_t codec_bound(const Codec *codec, size_t size)
{
    if (codec->zstd)
        return codec->zstd_bound(size);
    return size <= INT_MAX ? (size_t)codec->lz4_bound((int)size) : 0;
}

/* Return the size of the blob of `source` at `out`, which has room for any; 0 with words if none. */
static size_t codec_compress(const Codec *codec, void *context, const char *source, size_t size,
                             char *out, const char **words)
{
    size_t room = codec_bound(codec, size);
    if (codec->zstd) {
        size_t blob = codec->zstd_compress(context, out, room, source, size);
        if (!codec->zstd_is_error(blob))
            return blob;
        *words = codec->zstd_words(blob);
        return 0;
    }
    *words = "LZ4 gave no bytes";
    if (room == 0 || room > INT_MAX)
        return 0;
    codec->lz4_reset(context);
    return (size_t)codec->lz4_compress(context, source, out, (int)size, (int)room, codec->level);
}
