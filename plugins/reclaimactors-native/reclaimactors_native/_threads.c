/* Threads that compress batches of folios and never touch the interpreter.
 *
 * The event loop's thread calls the methods of a Pool, with the interpreter's lock: `submit` takes a
 * reference to each page and queues the batch, `collect` makes bytes objects of what came out and
 * lets go of the pages. In between a thread of the pool reads the pages and writes to the job's own
 * memory: it holds no lock of Python's, makes no object, and touches no reference count. A `bytes`
 * object neither moves nor changes while somebody has a reference to it.
 *
 * The compressing functions are those of the library that the Python package has loaded already
 * (`lz4`, `zstandard`), found by name: the blobs are that package's own, byte for byte.
 *
 * On failure: what a library refuses is a row of kind FAIL. A fault in C ends the whole process.
 */
#define PY_SSIZE_T_CLEAN
#include "_crew.h"

#ifndef Py_BEGIN_CRITICAL_SECTION /* before 3.13 the interpreter's lock is enough */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

enum {
    MOST_THREADS = 256,
    KEPT_BYTES = 1 << 21, /* of a job's memory that is kept for the next batch */
};

typedef struct {
    PyObject_HEAD
    Codec codec;
    int nice;
    int closing; /* a call of `close` is under way */
    Shared *shared; /* NULL while it is closed */
    long long number;
    Queue spare; /* jobs whose memory the next batches get */
    Py_ssize_t staging;
} Pool;

static void free_spare(Pool *self)
{
    for (Job *job; (job = pop(&self->spare)) != NULL;)
        free_job(job);
    self->staging = 0;
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"codec", "library", "level", "nice", NULL};
    const char *name;
    PyObject *path;
    int level, nice;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO&ii", names, &name, PyUnicode_FSConverter,
                                     &path, &level, &nice))
        return NULL;
    Pool *self = (Pool *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->nice = nice;
        if (find_codec(&self->codec, name, PyBytes_AS_STRING(path), level) < 0)
            Py_CLEAR(self);
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

/* Let go of threads that still run, or are a parent's: the pages that they read live on. */
static void pool_dealloc(PyObject *object)
{
    Pool *self = (Pool *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->shared != NULL && self->shared->pid == getpid()) {
        if (stop_threads(self->shared) == 0)
            free_shared(self->shared);
        else
            free_queues(self->shared);
    }
    free_spare(self);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *do_open(Pool *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threads", NULL};
    int nr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i", names, &nr))
        return NULL;
    if (nr < 1 || nr > MOST_THREADS)
        return PyErr_Format(PyExc_ValueError, "%d threads; allowed: 1 to %d", nr, MOST_THREADS);
    if (self->shared != NULL)
        return PyErr_Format(PyExc_RuntimeError, "the threads run already");
    Shared *shared = new_shared(&self->codec, self->nice, (size_t)nr);
    if (shared == NULL)
        return NULL;
    int error = start_threads(shared, (size_t)nr);
    if (error) {
        if (stop_threads(shared) == 0)
            free_shared(shared);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->shared = shared;
    return PyLong_FromLong(shared->wake[0]);
}

static Shared *opened(Pool *self)
{
    if (self->shared == NULL)
        PyErr_SetString(PyExc_RuntimeError, "the threads do not run: call open first");
    else if (self->shared->pid != getpid())
        PyErr_SetString(PyExc_RuntimeError, "the threads are those of the parent process");
    else
        return self->shared;
    return NULL;
}

/* Return the pages of a call as a tuple. It may run the caller's code: look at nothing before. */
static PyObject *pages_of(PyObject *args, PyObject *kwargs, int *of_sources)
{
    static char *names[] = {"pages", "of_sources", NULL};
    PyObject *pages;
    *of_sources = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$p", names, &pages, of_sources))
        return NULL;
    return PySequence_Tuple(pages);
}

/* Return a job for these pages, whose reference it takes. */
static Job *job_of(Pool *self, PyObject *pages, int of_sources)
{
    Job *job = pop(&self->spare);
    if (job == NULL)
        job = calloc(1, sizeof *job);
    if (job == NULL) {
        Py_DECREF(pages);
        PyErr_NoMemory();
        return NULL;
    }
    job->pages = pages;
    self->staging -= (Py_ssize_t)job->out_room;
    if (fill_job(&self->codec, job, of_sources) < 0) {
        free_job(job);
        return NULL;
    }
    self->staging += (Py_ssize_t)job->out_room;
    return job;
}

/* Let go of the pages of a job, and keep its memory for the next batch if it is of a usual size. */
static void spare_job(Pool *self, Job *job)
{
    Py_CLEAR(job->pages);
    if (job->out_room <= KEPT_BYTES) {
        push(&self->spare, job);
    } else {
        self->staging -= (Py_ssize_t)job->out_room;
        free_job(job);
    }
}

static PyObject *do_submit(Pool *self, PyObject *args, PyObject *kwargs)
{
    int of_sources;
    PyObject *pages = pages_of(args, kwargs, &of_sources);
    if (pages == NULL)
        return NULL;
    Shared *shared = opened(self);
    if (shared == NULL) {
        Py_DECREF(pages);
        return NULL;
    }
    Job *job = job_of(self, pages, of_sources);
    if (job == NULL)
        return NULL;
    long long number = job->number = ++self->number;
    pthread_mutex_lock(&shared->lock);
    push(&shared->todo, job);
    pthread_cond_signal(&shared->work);
    pthread_mutex_unlock(&shared->lock);
    return PyLong_FromLongLong(number);
}

static PyObject *do_collect(Pool *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Shared *shared = opened(self);
    if (shared == NULL)
        return NULL;
    if (atomic_load(&shared->nr_done) == 0)
        Py_RETURN_NONE;
    pthread_mutex_lock(&shared->lock);
    Job *job = pop(&shared->done);
    atomic_fetch_sub(&shared->nr_done, 1);
    if (shared->done.first == NULL)
        hear(shared);
    pthread_mutex_unlock(&shared->lock);
    PyObject *rows = rows_of(job);
    long long number = job->number;
    spare_job(self, job);
    return rows == NULL ? NULL : Py_BuildValue("(LN)", number, rows);
}

static PyObject *do_close(Pool *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Shared *shared = self->shared;
    if (shared == NULL)
        Py_RETURN_TRUE;
    if (shared->pid != getpid()) { /* a forked child: its copies of the descriptors, no more */
        close(shared->wake[0]);
        close(shared->wake[1]);
        self->shared = NULL;
        Py_RETURN_TRUE;
    }
    if (self->closing)
        Py_RETURN_FALSE;
    int left;
    self->closing = 1;
    Py_BEGIN_ALLOW_THREADS
    left = stop_threads(shared);
    Py_END_ALLOW_THREADS
    self->closing = 0;
    if (left)
        Py_RETURN_FALSE;
    self->shared = NULL;
    free_shared(shared);
    free_spare(self);
    Py_RETURN_TRUE;
}

static PyObject *do_squeeze(Pool *self, PyObject *args, PyObject *kwargs)
{
    static const atomic_int never = 0;
    int of_sources;
    PyObject *pages = pages_of(args, kwargs, &of_sources);
    Job *job = pages == NULL ? NULL : job_of(self, pages, of_sources);
    if (job == NULL)
        return NULL;
    void *context = codec_begin(&self->codec);
    run_job(&self->codec, context, job, &never);
    codec_end(&self->codec, context);
    PyObject *rows = rows_of(job);
    spare_job(self, job);
    return rows;
}

/* One call at a time of each object, also where there is no interpreter's lock. */
#define METHOD(name)                                                                     \
    static PyObject *pool_##name(PyObject *self, PyObject *args, PyObject *kwargs)       \
    {                                                                                    \
        PyObject *result;                                                                \
        Py_BEGIN_CRITICAL_SECTION(self);                                                 \
        result = do_##name((Pool *)self, args, kwargs);                                  \
        Py_END_CRITICAL_SECTION();                                                       \
        return result;                                                                   \
    }
#define ENTRY(name, doc) \
    {#name, (PyCFunction)(void (*)(void))pool_##name, METH_VARARGS | METH_KEYWORDS, doc}

METHOD(open)
METHOD(submit)
METHOD(collect)
METHOD(close)
METHOD(squeeze)

static PyObject *pool_staging(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((Pool *)self)->staging);
}

static PyMethodDef pool_methods[] = {
    ENTRY(open, "Start so many threads; return a descriptor, readable while a batch is done."),
    ENTRY(submit, "Queue a batch of bytes objects; return its number."),
    ENTRY(collect, "Return the number and the rows of a batch that is done, None of none."),
    ENTRY(close, "Stop; return whether all threads have ended, which may take a page's time."),
    ENTRY(squeeze, "Return the rows of a batch, compressed by the caller."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_attributes[] = {
    {"staging", pool_staging, NULL, "Bytes of memory for blobs that wait to be collected.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_doc, "Threads that compress with a function of the library at a path."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_attributes},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "reclaimactors_native._threads.Pool",
    .basicsize = sizeof(Pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};

static int module_exec(PyObject *module)
{
    pthread_once(&crc_once, make_crc_table);
    PyObject *type = PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    int failed = type == NULL || PyModule_AddType(module, (PyTypeObject *)type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_threads",
    .m_doc = "Threads that compress batches and never take the interpreter's lock.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__threads(void)
{
    return PyModuleDef_Init(&module_def);
}
