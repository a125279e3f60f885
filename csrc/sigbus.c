/* SPDX-License-Identifier: MIT */
/*
 * The one place where C keeps state: a signal's handler belongs to the process, and the kernel
 * tells it nothing but the address, so who guards which page, and which handler was there
 * before, must be found in static variables.
 */
#define _GNU_SOURCE
#include "sigbus.h"

#include <pthread.h>
#include <stdbool.h>

/*
 * initial-exec: other models may allocate at a thread's first use, and the first use may be
 * in the handler.
 */
#define HANDLER_SAFE __attribute__((tls_model("initial-exec")))

static _Thread_local struct ps_sigbus_guard *volatile current_guard HANDLER_SAFE;
static _Thread_local volatile sig_atomic_t chaining HANDLER_SAFE;

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;

/* What was in effect before our handler. */
struct previous {
    uintptr_t handler; /* sa_handler or sa_sigaction */
    int has_info;      /* it is sa_sigaction */
};

/*
 * A handler may take no lock, so it reads the newest of two versions while another thread may
 * write: version n is in previous_versions[n % 2]. Version n + 2, which takes that place, is
 * written only after n + 1 is published. So what was read is whole when n is the newest still.
 */
static struct previous previous_versions[2];
static unsigned newest_version;

static void lock_install(void)
{
    pthread_mutex_lock(&install_lock);
}

static void unlock_install(void)
{
    pthread_mutex_unlock(&install_lock);
}

/* A child that is forked while another thread installs would find the lock taken for ever. */
__attribute__((constructor)) static void keep_lock_usable_in_children(void)
{
    pthread_atfork(lock_install, unlock_install, unlock_install);
}

static void die_by_default(bool sent)
{
    const struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGBUS, &action, NULL);
    /* A fault comes again by itself when its instruction is repeated. */
    if (sent)
        raise(SIGBUS);
}

/* By one thread at a time. */
static void publish_previous(const struct sigaction *action)
{
    const unsigned version = newest_version + 1;
    struct previous *const place = &previous_versions[version % 2];
    const int has_info = (action->sa_flags & SA_SIGINFO) != 0;
    const uintptr_t handler =
        has_info ? (uintptr_t)action->sa_sigaction : (uintptr_t)action->sa_handler;

    __atomic_store_n(&place->handler, handler, __ATOMIC_RELEASE);
    __atomic_store_n(&place->has_info, has_info, __ATOMIC_RELEASE);
    __atomic_store_n(&newest_version, version, __ATOMIC_RELEASE);
}

static struct previous read_previous(void)
{
    for (;;) {
        const unsigned version = __atomic_load_n(&newest_version, __ATOMIC_ACQUIRE);
        const struct previous *const place = &previous_versions[version % 2];
        const struct previous read = {
            .handler = __atomic_load_n(&place->handler, __ATOMIC_ACQUIRE),
            .has_info = __atomic_load_n(&place->has_info, __ATOMIC_ACQUIRE),
        };
        if (__atomic_load_n(&newest_version, __ATOMIC_RELAXED) == version)
            return read;
    }
}

/* A SIGBUS that is not ours takes the way it would have taken without us. */
static void pass_on(int signal, siginfo_t *info, void *context)
{
    const bool sent = info->si_code <= 0; /* by kill() or raise(), not by a fault */
    const struct previous previous = read_previous();

    if (!previous.has_info) {
        if (previous.handler == (uintptr_t)SIG_IGN && sent)
            return;
        /* The kernel does not let a fault be ignored either. */
        if (previous.handler == (uintptr_t)SIG_DFL || previous.handler == (uintptr_t)SIG_IGN) {
            die_by_default(sent);
            return;
        }
    }
    /*
     * A handler installed after ours (faulthandler) ends by putting back what it found, us, and
     * raising the signal again. To call it again would go on for ever.
     */
    if (sent && chaining) {
        die_by_default(sent);
        return;
    }
    chaining = true;
    if (previous.has_info)
        ((void (*)(int, siginfo_t *, void *))previous.handler)(signal, info, context);
    else
        ((void (*)(int))previous.handler)(signal);
    chaining = false;
}

static bool is_guarded(const struct ps_sigbus_guard *guard, uintptr_t address)
{
    for (size_t i = 0; i < guard->n_pages; i++)
        if (address - (uintptr_t)guard->pages[i] < guard->page_size)
            return true;
    return false;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    struct ps_sigbus_guard *const guard = current_guard;

    /* si_addr means something only after a fault. */
    if (guard && info->si_code > 0 && is_guarded(guard, (uintptr_t)info->si_addr))
        siglongjmp(guard->back, 1);
    pass_on(signal, info, context);
}

/* Called for every pass, as somebody else may have installed a handler since. */
static void install(void)
{
    struct sigaction now;

    pthread_mutex_lock(&install_lock);
    sigaction(SIGBUS, NULL, &now);
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_sigbus) {
        publish_previous(&now);
        /* Mask and flags stay as they were, for the previous handler may be called from ours. */
        now.sa_sigaction = on_sigbus;
        now.sa_flags = (now.sa_flags & (int)~SA_RESETHAND) | SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGBUS, &now, NULL);
    }
    pthread_mutex_unlock(&install_lock);
}

void ps_sigbus_enter(struct ps_sigbus_guard *guard, const uint8_t *const *pages, size_t page_size)
{
    sigset_t sigbus;

    install();
    guard->pages = pages;
    guard->page_size = page_size;
    guard->n_pages = 0;
    /* A fault whose signal is blocked would kill the process. */
    sigemptyset(&sigbus);
    sigaddset(&sigbus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &sigbus, &guard->mask_before);
    current_guard = guard;
}

void ps_sigbus_leave(const struct ps_sigbus_guard *guard)
{
    current_guard = NULL;
    pthread_sigmask(SIG_SETMASK, &guard->mask_before, NULL);
}
