/* One batch: its pages, and a row of what came out for each. */
#pragma once
#include "_codec.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOB, SAME_FILLED, POOR, FAIL, NOMEM }; /* as in reclaimactors.abc */

enum { WHY_BYTES = 120 }; /* of the words of a failure */

typedef struct {
    const char *source;
    size_t size, blob; /* of the blob in the job's memory, where the kind is BLOB */
    uint64_t value;
    unsigned char kind;
} Row;

typedef struct Job {
    struct Job *next;
    long long number;
    PyObject *pages; /* a tuple: its references keep the sources where they are */
    Row *rows;
    size_t nr, rows_room;
    char *out; /* the blobs, one behind the other */
    size_t out_room;
    int of_sources;
    double cpu_s; /* of the thread that did it */
    char why[WHY_BYTES];
} Job;

static int same_filled(Row *row)
{
    const unsigned char *source = (const unsigned char *)row->source;
    if (row->size == 0)
        return 1;
    if (row->size < 16 || memcmp(source, source + 8, row->size - 8) != 0)
        return 0;
    row->value = load32(source) | (uint64_t)load32(source + 4) << 32;
    return 1;
}

/* Give each row of a job its kind, value and blob, until `stop`; the same as page_io.squeeze. */
static void run_job(const Codec *codec, void *context, Job *job, const atomic_int *stop)
{
    char *out = job->out;
    for (size_t i = 0; i < job->nr && !atomic_load_explicit(stop, memory_order_relaxed); i++) {
        Row *row = &job->rows[i];
        if (same_filled(row)) {
            row->kind = SAME_FILLED;
            continue;
        }
        if (context == NULL) {
            row->kind = NOMEM;
            continue;
        }
        const char *words = "";
        size_t size = codec_compress(codec, context, row->source, row->size, out, &words);
        if (size == 0) {
            row->kind = FAIL;
            if (job->why[0] == 0)
                snprintf(job->why, WHY_BYTES, "%s", words);
        } else if (size * 16 > row->size * 15) {
            row->kind = POOR;
            row->value = crc32_of(row->source, row->size);
        } else {
            row->kind = BLOB;
            row->blob = size;
            row->value = job->of_sources ? crc32_of(row->source, row->size) : crc32_of(out, size);
            out += size;
        }
    }
}

/* Get a job ready for its pages. */
static int fill_job(const Codec *codec, Job *job, int of_sources)
{
    size_t nr = (size_t)PyTuple_GET_SIZE(job->pages), sum = 0, largest = 0;
    if (nr > job->rows_room) {
        Row *rows = realloc(job->rows, nr * sizeof *rows);
        if (rows == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        job->rows = rows;
        job->rows_room = nr;
    }
    memset(job->rows, 0, nr * sizeof *job->rows);
    for (size_t i = 0; i < nr; i++) {
        PyObject *page = PyTuple_GET_ITEM(job->pages, (Py_ssize_t)i);
        if (!PyBytes_Check(page)) {
            PyErr_Format(PyExc_TypeError, "page %zu is %s; it must be bytes", i,
                         Py_TYPE(page)->tp_name);
            return -1;
        }
        job->rows[i].source = PyBytes_AS_STRING(page);
        job->rows[i].size = (size_t)PyBytes_GET_SIZE(page);
        sum += job->rows[i].size;
        if (job->rows[i].size > largest)
            largest = job->rows[i].size;
    }
    /* A blob is kept where it is smaller than its source, so that any has room behind the others. */
    size_t room = sum + codec_bound(codec, largest);
    if (room > job->out_room) {
        free(job->out);
        job->out_room = 0;
        job->out = malloc(room);
        if (job->out == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        job->out_room = room;
    }
    job->nr = nr;
    job->of_sources = of_sources;
    job->cpu_s = 0;
    job->why[0] = 0;
    return 0;
}

static void free_job(Job *job)
{
    Py_XDECREF(job->pages);
    free(job->rows);
    free(job->out);
    free(job);
}

/* Return the rows of a job: the arguments of `Squeezed`. */
static PyObject *rows_of(const Job *job)
{
    Py_ssize_t nr = (Py_ssize_t)job->nr;
    PyObject *kinds = PyByteArray_FromStringAndSize(NULL, nr);
    PyObject *blobs = PyList_New(nr), *values = PyList_New(nr);
    if (kinds == NULL || blobs == NULL || values == NULL)
        goto failed;
    const char *out = job->out;
    char *kind = PyByteArray_AS_STRING(kinds);
    for (Py_ssize_t i = 0; i < nr; i++) {
        const Row *row = &job->rows[i];
        PyObject *blob = row->kind == BLOB
                             ? PyBytes_FromStringAndSize(out, (Py_ssize_t)row->blob)
                             : Py_NewRef(Py_None);
        PyObject *value = PyLong_FromUnsignedLongLong(row->value);
        if (blob == NULL || value == NULL) {
            Py_XDECREF(blob);
            Py_XDECREF(value);
            goto failed;
        }
        PyList_SET_ITEM(blobs, i, blob);
        PyList_SET_ITEM(values, i, value);
        kind[i] = (char)row->kind;
        out += row->blob;
    }
    return Py_BuildValue("(NNNNsd)", kinds, blobs, values, PyBool_FromLong(job->of_sources),
                         job->why, job->cpu_s);
failed:
    Py_XDECREF(kinds);
    Py_XDECREF(blobs);
    Py_XDECREF(values);
    return NULL;
}
