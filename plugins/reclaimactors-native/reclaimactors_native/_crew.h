/* The threads of a pool, and the queues that they share with its owner. */
#pragma once
#include "_job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

enum {
    STACK_BYTES = 1 << 20, /* of a thread: LZ4 has 16 KiB of tables there */
    CLOSE_MS = 5,          /* that `stop_threads` waits for them to end their page */
};

typedef struct {
    Job *first, *last;
} Queue;

static void push(Queue *queue, Job *job)
{
    job->next = NULL;
    if (queue->last != NULL)
        queue->last->next = job;
    else
        queue->first = job;
    queue->last = job;
}

static Job *pop(Queue *queue)
{
    Job *job = queue->first;
    if (job != NULL) {
        queue->first = job->next;
        if (queue->first == NULL)
            queue->last = NULL;
    }
    return job;
}

/* What threads and their owner share. Freed once all threads have ended, or never. */
typedef struct {
    Codec codec;
    int nice;
    pthread_mutex_t lock; /* of the queues and counts; nothing of Python's is called under it */
    pthread_cond_t work, ended;
    Queue todo, done;
    atomic_int stop, nr_done;
    int running;    /* threads */
    int told;       /* `wake` has a byte that nobody has read */
    int wake[2];    /* a pipe: readable while something is done */
    pid_t pid;      /* whose threads they are */
    size_t nr_threads;
    pthread_t threads[];
} Shared;

static void tell(Shared *shared) /* under the lock */
{
    if (!shared->told) {
        shared->told = 1;
        while (write(shared->wake[1], "", 1) < 0 && errno == EINTR)
            ;
    }
}

static void hear(Shared *shared) /* under the lock */
{
    char byte;
    if (shared->told) {
        shared->told = 0;
        while (read(shared->wake[0], &byte, 1) < 0 && errno == EINTR)
            ;
    }
}

static double thread_cpu_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *work(void *argument)
{
    Shared *shared = argument;
#ifdef __linux__ /* where niceness is a thread's own; elsewhere it is the process's */
    id_t thread = (id_t)syscall(SYS_gettid);
    setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + shared->nice);
    pthread_setname_np(pthread_self(), "reclaim-native");
#endif
    void *context = codec_begin(&shared->codec);
    pthread_mutex_lock(&shared->lock);
    for (;;) {
        while (shared->todo.first == NULL && !atomic_load(&shared->stop))
            pthread_cond_wait(&shared->work, &shared->lock);
        if (atomic_load(&shared->stop))
            break;
        Job *job = pop(&shared->todo);
        pthread_mutex_unlock(&shared->lock);
        double begun = thread_cpu_s();
        run_job(&shared->codec, context, job, &shared->stop);
        job->cpu_s = thread_cpu_s() - begun;
        pthread_mutex_lock(&shared->lock);
        push(&shared->done, job);
        atomic_fetch_add(&shared->nr_done, 1);
        tell(shared);
    }
    pthread_mutex_unlock(&shared->lock);
    codec_end(&shared->codec, context);
    pthread_mutex_lock(&shared->lock);
    shared->running--;
    pthread_cond_broadcast(&shared->ended);
    pthread_mutex_unlock(&shared->lock);
    return NULL;
}

/* Start threads that get none of the host's signals but for those of their own faults. */
static int start_threads(Shared *shared, size_t nr)
{
    sigset_t blocked, before;
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&blocked, own[i]);
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_mutex_lock(&shared->lock);
    while (shared->nr_threads < nr && !error) {
        error = pthread_create(&shared->threads[shared->nr_threads], &attributes, work, shared);
        if (!error) {
            shared->nr_threads++;
            shared->running++;
        }
    }
    pthread_mutex_unlock(&shared->lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

/* Have the threads stop after their page; return how many have not ended within CLOSE_MS. */
static int stop_threads(Shared *shared)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += CLOSE_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&shared->lock);
    atomic_store(&shared->stop, 1);
    pthread_cond_broadcast(&shared->work);
    while (shared->running > 0 &&
           pthread_cond_timedwait(&shared->ended, &shared->lock, &until) == 0)
        ;
    int left = shared->running;
    pthread_mutex_unlock(&shared->lock);
    return left;
}

static void free_queues(Shared *shared) /* with the interpreter's lock, not under ours */
{
    Queue queues[2];
    pthread_mutex_lock(&shared->lock);
    queues[0] = shared->todo;
    queues[1] = shared->done;
    shared->todo = shared->done = (Queue){NULL, NULL};
    pthread_mutex_unlock(&shared->lock);
    for (int i = 0; i < 2; i++)
        for (Job *job; (job = pop(&queues[i])) != NULL;)
            free_job(job);
}

static void free_shared(Shared *shared) /* all threads have ended */
{
    for (size_t i = 0; i < shared->nr_threads; i++)
        pthread_join(shared->threads[i], NULL);
    free_queues(shared);
    for (int i = 0; i < 2; i++)
        if (shared->wake[i] >= 0)
            close(shared->wake[i]);
    pthread_cond_destroy(&shared->work);
    pthread_cond_destroy(&shared->ended);
    pthread_mutex_destroy(&shared->lock);
    free(shared);
}

static Shared *new_shared(const Codec *codec, int nice, size_t nr)
{
    Shared *shared = calloc(1, sizeof *shared + nr * sizeof *shared->threads);
    if (shared == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    shared->codec = *codec;
    shared->nice = nice;
    shared->pid = getpid();
    shared->wake[0] = shared->wake[1] = -1;
    pthread_mutex_init(&shared->lock, NULL);
    pthread_cond_init(&shared->work, NULL);
    pthread_cond_init(&shared->ended, NULL);
    int failed = pipe(shared->wake);
    for (int i = 0; i < 2 && !failed; i++)
        failed = fcntl(shared->wake[i], F_SETFD, FD_CLOEXEC) < 0 ||
                 fcntl(shared->wake[i], F_SETFL, O_NONBLOCK) < 0;
    if (failed) {
        PyErr_SetFromErrno(PyExc_OSError);
        free_shared(shared);
        return NULL;
    }
    return shared;
}
