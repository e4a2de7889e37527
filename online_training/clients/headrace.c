/* The solver's side of the wire in C99; docs/wire.md is the specification, client.py the reference. */
#define _POSIX_C_SOURCE 200809L
#include "headrace.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { VERSION = 2, HEADER = 224, SIGNED = 192, MAX_BLOCK = 4 << 20, MAX_FRAME = MAX_BLOCK + (64 << 10), MAX_JSON = 64 << 10 };
enum { PAYLOAD_SIGNED = 1, IN_RING = 2, SKIP_NEXT = 4, BY_INDEX = 8, EXIT_LEASE_EXPIRED = 75, MAX_ADDRESSES = 8 };
enum { RING_HEAD = 64, RING_ALIGNMENT = 64, WORDS = 64 };
static const double FIRST_PAUSE = 0.001, LONGEST_PAUSE = 0.02; /* seconds between two looks of while_waiting */
enum {
    HELLO = 1, WELCOME, REFUSED, DECLARE, DECLARED, REQUEST, ASSIGN, FINISHED, CREDIT, BLOCK, ACK, END, ENDED, LEASE,
    LEASED, BYE, SKIP, CELLS
};

typedef struct {
    uint16_t kind, field;
    uint64_t session, sequence, simulation, step, value, length;
    uint32_t attempt, block, num_blocks, crc, flags;
    int type, ndim;
    double time;
    int64_t shape[HEADRACE_MAX_NDIM], offset[HEADRACE_MAX_NDIM], block_shape[HEADRACE_MAX_NDIM];
} message;

typedef struct {
    char *name;
    int ndim, put;
    int64_t shape[HEADRACE_MAX_NDIM];
    /* the block that was put: a box of the field, or a part of the list of this rank's cells */
    int by_index, block_ndim;
    int64_t global[HEADRACE_MAX_NDIM], offset[HEADRACE_MAX_NDIM], block_shape[HEADRACE_MAX_NDIM];
    unsigned char *data;
    size_t capacity;
} staged;

struct headrace {
    staged *fields;
    int num_fields, type, rank, ranks, active;
    char error[2048], lost[1200], job[256], host[256];
    unsigned char token[32];
    uint64_t study;
    char *address_list, *addresses[MAX_ADDRESSES], *address;
    int num_addresses;
    void *context, *socket, *monitor;
    uint64_t session, sequence, heard;
    double lease;
    int lease_given, strict, skips, broken; /* broken: the session is over */
    pthread_t thread;
    pthread_mutex_t mutex; /* guards session, address and closing, which the lease thread reads */
    int thread_runs, closing;
    unsigned char *payload; /* of the last message received, a string */
    size_t payload_length;
    int log;
    char *file_name; /* without a study: where the blocks go; file: open while a simulation runs */
    FILE *file;
    int64_t *cells, num_cells;
    uint64_t cells_session; /* that knows the cells; 0: none */
    unsigned char *ring;    /* RING_HEAD + ring_size bytes that the intake made; NULL: blocks travel as frames */
    uint64_t ring_size, ring_end;
    uint64_t round;
    /* the simulation */
    int running, simulation_lost, ended, word, once;
    uint64_t simulation, seed, bytes;
    uint32_t attempt;
    int64_t num_steps, next, credit, skip_step;
    int64_t said; /* the words to all steps up to this one are known; continue, where words has none */
    struct { int64_t step; int word; } words[WORDS];
    char *parameters;
    double blocked, began;
    void (*while_waiting)(void *);
    void *while_waiting_argument;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

static int fail(headrace *h, int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(h->error, sizeof h->error, format, list);
    va_end(list);
    return code;
}

static char *copy_text(const char *text)
{
    char *copy = malloc(strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}

/* ---- checksum and header ------------------------------------------------------------------------------------- */

static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 255] ^ (crc_table[t - 1][i] >> 8);
}

uint32_t headrace_wire_crc32(uint32_t crc, const void *data, size_t length)
{
    const unsigned char *p = data;
    pthread_once(&crc_once, make_crc_table);
    crc = ~crc;
    for (; length >= 8; length -= 8, p += 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
              crc_table[4][low >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]] ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    while (length--) crc = crc_table[0][(crc ^ *p++) & 255] ^ (crc >> 8);
    return ~crc;
}

static void store(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) at[i] = (unsigned char)(value >> 8 * i);
}

static uint64_t load(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << 8 * i;
    return value;
}

static void authenticate(const unsigned char *header, const unsigned char *token, const void *payload, size_t length,
                         unsigned char *code)
{
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, token, 32);
    crypto_auth_hmacsha256_update(&state, header, SIGNED);
    if (load(header + 180, 4) & PAYLOAD_SIGNED) crypto_auth_hmacsha256_update(&state, payload, length);
    crypto_auth_hmacsha256_final(&state, code);
}

void headrace_wire_sign(unsigned char header[224], const unsigned char token[32], const void *payload, size_t length)
{
    authenticate(header, token, payload, length, header + SIGNED);
}

static void pack(const headrace *h, const message *m, unsigned char *at)
{
    uint64_t time;
    memset(at, 0, HEADER);
    memcpy(&time, &m->time, 8);
    memcpy(at, "HDRC", 4);
    store(at + 4, VERSION, 2);
    store(at + 6, m->kind, 2);
    store(at + 8, h->study, 8);
    store(at + 16, m->session, 8);
    store(at + 24, m->sequence, 8);
    store(at + 32, m->simulation, 8);
    store(at + 40, m->attempt, 4);
    store(at + 44, m->field, 2);
    at[46] = (unsigned char)m->type;
    at[47] = (unsigned char)m->ndim;
    store(at + 48, m->step, 8);
    store(at + 56, time, 8);
    store(at + 64, m->block, 4);
    store(at + 68, m->num_blocks, 4);
    for (int i = 0; i < m->ndim; i++) {
        store(at + 72 + 8 * i, (uint64_t)m->shape[i], 8);
        store(at + 104 + 8 * i, (uint64_t)m->offset[i], 8);
        store(at + 136 + 8 * i, (uint64_t)m->block_shape[i], 8);
    }
    store(at + 168, m->length, 8);
    store(at + 176, m->crc, 4);
    store(at + 180, m->flags, 4);
    store(at + 184, m->value, 8);
}

/* Read a header of this study; 0 where it must be dropped. */
static int unpack(const headrace *h, const unsigned char *at, size_t size, const void *payload, size_t length, message *m)
{
    unsigned char code[32];
    if (size != HEADER || memcmp(at, "HDRC", 4) || load(at + 4, 2) != VERSION) return 0;
    authenticate(at, h->token, payload, length, code);
    if (sodium_memcmp(code, at + SIGNED, 32) || load(at + 8, 8) != h->study) return 0;
    memset(m, 0, sizeof *m);
    m->kind = (uint16_t)load(at + 6, 2);
    m->session = load(at + 16, 8);
    m->sequence = load(at + 24, 8);
    m->simulation = load(at + 32, 8);
    m->attempt = (uint32_t)load(at + 40, 4);
    m->step = load(at + 48, 8);
    m->length = load(at + 168, 8);
    m->crc = (uint32_t)load(at + 176, 4);
    m->flags = (uint32_t)load(at + 180, 4);
    m->value = load(at + 184, 8);
    return m->length == length && m->crc == (length ? headrace_wire_crc32(0, payload, length) : 0);
}

/* ---- JSON, as much of it as the wire needs --------------------------------------------------------------------- */

static const char *skip_space(const char *s)
{
    while (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r') s++;
    return s;
}

static const char *skip_string(const char *s) /* at the opening quote */
{
    for (s++; *s && *s != '"'; s++)
        if (*s == '\\' && s[1]) s++;
    return *s ? s + 1 : s;
}

static const char *skip_value(const char *s)
{
    int depth = 0;
    for (s = skip_space(s); *s; s++) {
        if (*s == '"') {
            s = skip_string(s) - 1;
        } else if (*s == '{' || *s == '[') {
            depth++;
        } else if (*s == '}' || *s == ']') {
            if (depth == 0) return s;
            depth--;
        } else if (depth == 0 && *s == ',') {
            return s;
        }
        if (!s[1]) return s + 1;
    }
    return s;
}

/* The value of a key of the object at s; NULL where there is none. Keys of the wire need no escapes. */
static const char *json_find(const char *s, const char *key)
{
    size_t length = strlen(key);
    s = s ? skip_space(s) : "";
    if (*s != '{') return NULL;
    for (s = skip_space(s + 1); *s == '"';) {
        const char *end = skip_string(s);
        int same = (size_t)(end - s) == length + 2 && !strncmp(s + 1, key, length);
        s = skip_space(end);
        if (*s != ':') return NULL;
        s = skip_space(s + 1);
        if (same) return s;
        s = skip_space(skip_value(s));
        if (*s != ',') return NULL;
        s = skip_space(s + 1);
    }
    return NULL;
}

static int json_is(const char *s, const char *key, const char *expected)
{
    const char *value = json_find(s, key);
    return value && !strncmp(value, expected, strlen(expected));
}

static void json_text(const char *s, const char *key, char *out, size_t size) /* unescapes what people read */
{
    const char *value = json_find(s, key);
    size_t n = 0;
    if (value && *value == '"')
        for (value++; *value && *value != '"' && n + 1 < size; value++) {
            if (*value == '\\' && value[1]) value++;
            out[n++] = *value;
        }
    out[n] = 0;
}

/* Bytes of the letter at s in UTF-8; 0 where there is none. */
static size_t letter(const unsigned char *s)
{
    size_t n = *s < 0x80 ? 1 : *s >= 0xC2 && *s < 0xE0 ? 2 : *s >= 0xE0 && *s < 0xF0 ? 3 : *s >= 0xF0 && *s < 0xF5 ? 4 : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    if ((*s == 0xE0 && s[1] < 0xA0) || (*s == 0xF0 && s[1] < 0x90) || (*s == 0xF4 && s[1] > 0x8F)) return 0;
    if (*s == 0xED && s[1] > 0x9F) return 0; /* a half of a pair of UTF-16, no letter by itself */
    return n;
}

/* The intake drops a message that is no UTF-8, and whoever sent it waits: other bytes, as of Latin-1, become "?". */
static void json_quote(const char *text, char *out, size_t size)
{
    size_t n = 0;
    out[n++] = '"';
    while (*text && n + 8 < size) {
        unsigned char c = (unsigned char)*text;
        size_t bytes = letter((const unsigned char *)text);
        if (c < 32) {
            n += (size_t)snprintf(out + n, size - n, "\\u%04x", c);
        } else if (bytes == 0) {
            out[n++] = '?';
        } else {
            if (c == '"' || c == '\\') out[n++] = '\\';
            memcpy(out + n, text, bytes);
            n += bytes;
        }
        text += bytes ? bytes : 1;
    }
    out[n++] = '"';
    out[n] = 0;
}

/* ---- the session ----------------------------------------------------------------------------------------------- */

static void lose(headrace *h, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(h->lost, sizeof h->lost, format, list);
    va_end(list);
    h->broken = 1;
}

static void *open_socket(headrace *h, const char *address, int watched)
{
    unsigned char name[16];
    int linger = 0, interval = 50, most = 1000, on = 1;
    int64_t frame = MAX_FRAME;
    void *socket = zmq_socket(h->context, ZMQ_DEALER);
    if (!socket) return NULL;
    randombytes_buf(name, sizeof name);
    name[0] = 'H';
    zmq_setsockopt(socket, ZMQ_ROUTING_ID, name, sizeof name);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &frame, sizeof frame);
    zmq_setsockopt(socket, ZMQ_RECONNECT_IVL, &interval, sizeof interval);
    zmq_setsockopt(socket, ZMQ_RECONNECT_IVL_MAX, &most, sizeof most);
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE, &on, sizeof on);
    if (watched) {
        char place[64];
        snprintf(place, sizeof place, "inproc://headrace-%p-%u", (void *)h, (unsigned)randombytes_random());
        zmq_socket_monitor(socket, place, ZMQ_EVENT_DISCONNECTED);
        h->monitor = zmq_socket(h->context, ZMQ_PAIR);
        if (h->monitor) zmq_connect(h->monitor, place);
    }
    if (!strncmp(address, "curve+", 6)) {
        const char *roles[] = {"headrace curve intake", "headrace curve client"};
        for (int i = 0; i < 2; i++) {
            char secret[41], open[41];
            unsigned char key[32];
            crypto_auth_hmacsha256(key, (const unsigned char *)roles[i], strlen(roles[i]), h->token);
            zmq_z85_encode(secret, key, 32);
            zmq_curve_public(open, secret);
            if (i == 0) {
                zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, open, 41);
            } else {
                zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, open, 41);
                zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41);
            }
        }
        address += 6;
    }
    if (zmq_connect(socket, address)) {
        zmq_close(socket);
        return NULL;
    }
    return socket;
}

static void shut(headrace *h, int linger)
{
    if (h->socket) {
        zmq_socket_monitor(h->socket, NULL, 0);
        if (h->monitor) {
            int none = 0;
            zmq_setsockopt(h->monitor, ZMQ_LINGER, &none, sizeof none);
            zmq_close(h->monitor);
        }
        zmq_setsockopt(h->socket, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(h->socket);
    }
    h->socket = h->monitor = NULL;
}

/* Wait for the sockets; notice a broken connection; return the events of the socket. */
static int watch(headrace *h, int events, double seconds)
{
    zmq_pollitem_t items[2] = {{h->socket, 0, (short)events, 0}, {h->monitor, 0, ZMQ_POLLIN, 0}};
    if (seconds < 0) seconds = 0;
    if (zmq_poll(items, h->monitor ? 2 : 1, (long)(1000 * seconds + 0.999)) < 0) return 0;
    if (h->monitor && items[1].revents) {
        /* Messages in flight are gone with the connection and ZeroMQ does not say which: the session is over. */
        char rest[512];
        while (zmq_recv(h->monitor, rest, sizeof rest, ZMQ_DONTWAIT) >= 0) continue;
        lose(h, "the connection to the intake at %s broke", h->address);
    }
    return items[0].revents;
}

static void send_message(headrace *h, message *m, const void *payload)
{
    unsigned char header[HEADER];
    size_t length = m->flags & IN_RING ? 0 : m->length; /* of the second frame */
    if (h->broken) return;
    m->session = h->session;
    m->sequence = ++h->sequence;
    pack(h, m, header);
    headrace_wire_sign(header, h->token, payload, length);
    if (h->file) {
        fwrite(header, 1, HEADER, h->file);
        fwrite(payload, 1, length, h->file);
        return;
    }
    while (zmq_send(h->socket, header, HEADER, ZMQ_DONTWAIT | (length ? ZMQ_SNDMORE : 0)) < 0) {
        if (errno != EAGAIN && errno != EINTR) lose(h, "sending to %s failed: %s", h->address, zmq_strerror(errno));
        if (!h->broken) watch(h, ZMQ_POLLOUT, 1.0);
        if (h->broken) return;
    }
    if (length && zmq_send(h->socket, payload, length, 0) < 0)
        lose(h, "sending to %s failed: %s", h->address, zmq_strerror(errno));
}

/* Send a message whose payload is authenticated. */
static void send_payload(headrace *h, message *m, const void *payload, size_t length)
{
    m->length = length;
    m->crc = headrace_wire_crc32(0, payload, length);
    m->flags = PAYLOAD_SIGNED;
    send_message(h, m, payload);
}

static void send_json(headrace *h, message *m, const char *json) { send_payload(h, m, json, strlen(json)); }

/* Receive frames of one message without waiting: 1 an authentic one, 0 nothing, -1 one to drop. */
static int take_frames(headrace *h, void *socket, message *m, unsigned char **payload, size_t *length)
{
    unsigned char header[HEADER];
    size_t size = 0, content = 0;
    unsigned char *copy = NULL;
    int count = 0, more = 1;
    while (more) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            break;
        }
        if (count == 0) {
            size = zmq_msg_size(&frame);
            if (size == HEADER) memcpy(header, zmq_msg_data(&frame), HEADER);
        } else if (count == 1) {
            content = zmq_msg_size(&frame);
            copy = malloc(content + 1);
            if (copy) {
                memcpy(copy, zmq_msg_data(&frame), content);
                copy[content] = 0;
            }
        }
        count++;
        more = zmq_msg_more(&frame);
        zmq_msg_close(&frame);
    }
    if (count == 0) return 0;
    if (count > 2 || size != HEADER || (content && !copy) || !unpack(h, header, size, copy, content, m)) {
        free(copy);
        return -1;
    }
    if (payload) {
        free(*payload);
        *payload = copy;
        *length = content;
    } else {
        free(copy);
    }
    return 1;
}

/* The intake's next message: 1, or 0 after the timeout or when the session is lost; negative: refused. */
static int receive(headrace *h, double seconds, message *m)
{
    double deadline = now() + seconds, pause = FIRST_PAUSE;
    while (!h->broken) {
        int got = take_frames(h, h->socket, m, &h->payload, &h->payload_length);
        if (got == 0) {
            double left = deadline - now();
            if (watch(h, ZMQ_POLLIN, h->while_waiting && pause < left ? pause : left) & ZMQ_POLLIN) continue;
            if (left <= 0) return 0;
            if (h->while_waiting) h->while_waiting(h->while_waiting_argument);
            pause = 2 * pause < LONGEST_PAUSE ? 2 * pause : LONGEST_PAUSE;
            continue;
        }
        if (got < 0) continue;
        if (m->kind == REFUSED) {
            char reason[1024];
            json_text((char *)h->payload, "error", reason, sizeof reason);
            if (!json_is((char *)h->payload, "rejoin", "true"))
                return fail(h, HEADRACE_REFUSED, "The intake at %s refused: %s", h->address, reason);
            if (h->session) lose(h, "the intake at %.200s says: %.900s", h->address, reason);
            continue;
        }
        if (m->kind != WELCOME && (m->session != h->session || m->sequence <= h->heard)) continue;
        h->heard = m->sequence;
        return 1;
    }
    return 0;
}

/* ---- the ring: memory shared with the intake of this node ----------------------------------------------------- */

static void leave_ring(headrace *h)
{
    if (h->ring) munmap(h->ring, RING_HEAD + h->ring_size);
    h->ring = NULL;
    h->ring_size = h->ring_end = 0;
}

/* Map what WELCOME offers. Where it cannot be had, the intake is elsewhere after all and blocks travel as frames. */
static void enter_ring(headrace *h, const char *offer)
{
    char path[256], nonce[64], found[33];
    const char *bytes = json_find(offer, "bytes");
    struct stat status;
    void *memory = MAP_FAILED;
    uint64_t size = bytes ? strtoull(bytes, NULL, 10) : 0;
    int file;
    leave_ring(h);
    if (!size) return;
    json_text(offer, "path", path, sizeof path);
    json_text(offer, "nonce", nonce, sizeof nonce);
    file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    if (!fstat(file, &status) && (uint64_t)status.st_size == RING_HEAD + size)
        memory = mmap(NULL, RING_HEAD + size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return;
    h->ring = memory;
    h->ring_size = size;
    sodium_bin2hex(found, sizeof found, h->ring + 8, 16);
    if (strcmp(found, nonce)) leave_ring(h);
}

/* Copy a part into the ring: 1 and its position, 0 where what lies there is not read yet, -1 where it never fits. */
static int place_in_ring(headrace *h, const unsigned char *data, uint64_t length, uint64_t *position)
{
    uint64_t at = (h->ring_end + RING_ALIGNMENT - 1) / RING_ALIGNMENT * RING_ALIGNMENT, read;
    if (!h->ring || length > h->ring_size / 2) return -1;
    if (at % h->ring_size + length > h->ring_size) at = (at + h->ring_size - 1) / h->ring_size * h->ring_size;
    read = __atomic_load_n((uint64_t *)(void *)h->ring, __ATOMIC_ACQUIRE);
    if (at + length - read > h->ring_size && read < h->ring_end) return 0;
    memcpy(h->ring + RING_HEAD + at % h->ring_size, data, length);
    h->ring_end = at + length;
    *position = at;
    return 1;
}

/* Say "I am alive" once a second; end a process whose study is silent. */
static void *keep_lease(void *argument)
{
    headrace *h = argument;
    void *socket = NULL;
    uint64_t session = 0, sequence = 0;
    double silent = 0;
    for (;;) {
        char address[512];
        uint64_t current;
        double lease, interval, began = now();
        int closing, heard = 0;
        pthread_mutex_lock(&h->mutex);
        current = h->session;
        closing = h->closing;
        lease = h->lease;
        snprintf(address, sizeof address, "%s", h->address);
        pthread_mutex_unlock(&h->mutex);
        if (closing) break;
        interval = lease / 4 < 1 ? lease / 4 : 1;
        if (current && current != session) {
            if (socket) zmq_close(socket);
            socket = open_socket(h, address, 0);
            session = current;
            sequence = 0;
        }
        if (socket) {
            unsigned char header[HEADER];
            message m = {0};
            m.kind = LEASE;
            m.session = session;
            m.sequence = ++sequence;
            pack(h, &m, header);
            headrace_wire_sign(header, h->token, NULL, 0);
            zmq_send(socket, header, HEADER, ZMQ_DONTWAIT);
        }
        while (now() < began + interval) {
            zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
            message m;
            pthread_mutex_lock(&h->mutex);
            closing = h->closing;
            pthread_mutex_unlock(&h->mutex);
            if (closing) break;
            if (socket && !heard) {
                zmq_poll(&item, 1, (long)(100 * interval) + 1);
                if (item.revents & ZMQ_POLLIN) heard |= take_frames(h, socket, &m, NULL, NULL) > 0;
            } else {
                nap(interval / 10);
            }
        }
        /* A process that was suspended must not blame the intake for that time. */
        began = now() - began;
        silent = heard ? 0 : silent + (began < 2 * interval ? began : 2 * interval);
        if (silent > lease && !closing) {
            fprintf(stderr, "headrace: rank %d of job %s heard nothing from the intake at %s for %g s; the process ends"
                    " with code %d.\n", h->rank, h->job, address, lease, EXIT_LEASE_EXPIRED);
            _exit(EXIT_LEASE_EXPIRED);
        }
    }
    if (socket) zmq_close(socket);
    return NULL;
}

/* Say HELLO at one address: 1 welcome, 0 no answer, negative refused. */
static int greet(headrace *h, char *address, double deadline)
{
    unsigned char random[16];
    char nonce[33], job[600], host[600], json[2048], their[64];
    message m = {0};
    int code;
    shut(h, 0);
    pthread_mutex_lock(&h->mutex);
    h->session = 0;
    h->address = address;
    pthread_mutex_unlock(&h->mutex);
    h->sequence = h->heard = 0;
    h->broken = 0;
    h->socket = open_socket(h, address, 1);
    if (!h->socket) return fail(h, HEADRACE_SYSTEM, "Address %s cannot be used: %s.", address, zmq_strerror(errno));
    randombytes_buf(random, sizeof random);
    sodium_bin2hex(nonce, sizeof nonce, random, sizeof random);
    json_quote(h->job, job, sizeof job);
    json_quote(h->host, host, sizeof host);
    snprintf(json, sizeof json, "{\"role\": \"solver\", \"job\": %s, \"rank\": %d, \"ranks\": %d, \"generation\": 0, "
             "\"pid\": %ld, \"host\": %s, \"nonce\": \"%s\"}", job, h->rank, h->ranks, (long)getpid(), host, nonce);
    m.kind = HELLO;
    send_json(h, &m, json);
    while (!h->broken) {
        code = receive(h, deadline - now(), &m);
        if (code < 0) return code;
        if (code == 0) break;
        json_text((char *)h->payload, "nonce", their, sizeof their);
        if (m.kind == WELCOME && !strcmp(their, nonce)) {
            const char *lease = json_find((char *)h->payload, "lease");
            pthread_mutex_lock(&h->mutex);
            h->session = m.session;
            if (!h->lease_given && lease) h->lease = strtod(lease, NULL);
            pthread_mutex_unlock(&h->mutex);
            h->strict = json_is((char *)h->payload, "strict", "true");
            h->skips = json_is((char *)h->payload, "when_full", "\"skip\"");
            enter_ring(h, json_find((char *)h->payload, "ring"));
            return 1;
        }
    }
    return 0;
}

static int join(headrace *h)
{
    double deadline = now() + h->lease;
    for (;;) {
        for (int i = 0; i < h->num_addresses; i++) {
            char *address = h->addresses[i];
            double until = now() + 2 < deadline ? now() + 2 : deadline;
            int code;
            if (!strncmp(address, "ipc://", 6) && access(address + 6, F_OK)) continue;
            code = greet(h, address, until);
            if (code < 0) return code;
            if (code == 1) {
                if (!h->thread_runs) h->thread_runs = !pthread_create(&h->thread, NULL, keep_lease, h);
                if (!h->thread_runs) return fail(h, HEADRACE_SYSTEM, "The thread that keeps the lease cannot be started.");
                return 0;
            }
        }
        if (now() >= deadline)
            return fail(h, HEADRACE_UNREACHABLE, "No intake answered within %g s at %s. Is the study still running, and does"
                        " this job carry its token (HEADRACE_TOKEN_FILE) and study (HEADRACE_STUDY)?", h->lease,
                        getenv("HEADRACE_ADDRESS") ? getenv("HEADRACE_ADDRESS") : "its address");
        nap(0.05);
    }
}

/* ---- opening and closing --------------------------------------------------------------------------------------- */

static int read_token(headrace *h, const char *path)
{
    char text[128] = "";
    struct stat status;
    size_t length = 0, read;
    FILE *file = fopen(path, "r");
    if (!file) return fail(h, HEADRACE_SYSTEM, "Token file %s cannot be read: %s.", path, strerror(errno));
    if (fstat(fileno(file), &status) || status.st_uid != geteuid() || (status.st_mode & 077)) {
        fclose(file);
        return fail(h, HEADRACE_WRONG_USE, "Token file %s must be yours with mode 0600; it has mode %04o and owner %ld.",
                    path, (unsigned)(status.st_mode & 07777), (long)status.st_uid);
    }
    read = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    while (read && strchr(" \t\r\n", text[read - 1])) text[--read] = 0;
    if (read != 64 || sodium_hex2bin(h->token, 32, text, 64, NULL, &length, NULL) || length != 32)
        return fail(h, HEADRACE_WRONG_USE, "Token file %s must hold 64 hexadecimal digits and nothing else.", path);
    return 0;
}

static int begin(headrace *h)
{
    const char *token = getenv("HEADRACE_TOKEN_FILE"), *study = getenv("HEADRACE_STUDY"), *job = getenv("HEADRACE_JOB");
    const char *lease = getenv("HEADRACE_LEASE"), *folder = getenv("HEADRACE_LOG_DIR");
    if (!token || !*token || !study || !*study || ((!job || !*job) && h->ranks > 1))
        return fail(h, HEADRACE_WRONG_USE, "HEADRACE_ADDRESS is set but %s is not. Start the solver through its study, or unset"
                    " HEADRACE_ADDRESS to run without one.", !token || !*token ? "HEADRACE_TOKEN_FILE"
                    : !study || !*study ? "HEADRACE_STUDY" : "HEADRACE_JOB");
    if (gethostname(h->host, sizeof h->host - 1)) strcpy(h->host, "unknown");
    if (job && *job) snprintf(h->job, sizeof h->job, "%s", job);
    else snprintf(h->job, sizeof h->job, "%.200s-%ld", h->host, (long)getpid());
    h->study = strtoull(study, NULL, 16);
    h->lease = lease && *lease ? strtod(lease, NULL) : 60.0;
    h->lease_given = lease && *lease;
    if (read_token(h, token)) return HEADRACE_WRONG_USE;
    h->address_list = copy_text(getenv("HEADRACE_ADDRESS"));
    if (!h->address_list) return fail(h, HEADRACE_SYSTEM, "No memory is left.");
    for (char *rest = NULL, *part = strtok_r(h->address_list, ", ", &rest); part && h->num_addresses < MAX_ADDRESSES;
         part = strtok_r(NULL, ", ", &rest))
        h->addresses[h->num_addresses++] = part;
    if (!h->num_addresses) return fail(h, HEADRACE_WRONG_USE, "The intake's address is empty; it looks like tcp://host:port.");
    h->address = h->addresses[0];
    if (folder && *folder) {
        char path[4096];
        snprintf(path, sizeof path, "%s/solver-%s-%d.log", folder, h->job, h->rank);
        h->log = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (h->log < 0) return fail(h, HEADRACE_SYSTEM, "%s cannot be written: %s.", path, strerror(errno));
    }
    h->context = zmq_ctx_new();
    if (!h->context) return fail(h, HEADRACE_SYSTEM, "ZeroMQ cannot be started: %s.", zmq_strerror(errno));
    h->active = 1;
    h->broken = 1;
    return 0;
}

static void name_file(headrace *h, const char *folder)
{
    h->file_name = malloc(strlen(folder) + 32);
    if (h->file_name) sprintf(h->file_name, "%s/blocks-%06d.hdrc", folder, h->rank);
    else fail(h, HEADRACE_SYSTEM, "No memory is left.");
}

headrace *headrace_open(const headrace_field *fields, int num_fields, int type, int rank, int ranks)
{
    headrace *h = calloc(1, sizeof *h);
    if (!h) return NULL;
    h->log = -1;
    h->num_steps = -1;
    h->attempt = 1;
    pthread_mutex_init(&h->mutex, NULL);
    h->type = type;
    h->rank = rank;
    h->ranks = ranks;
    if (sodium_init() < 0) fail(h, HEADRACE_SYSTEM, "libsodium cannot be started.");
    else if (type < HEADRACE_FLOAT32 || type > HEADRACE_UINT8) fail(h, HEADRACE_WRONG_USE, "Type %d cannot be sent.", type);
    else if (rank < 0 || rank >= ranks) fail(h, HEADRACE_WRONG_USE, "Rank %d of %d ranks cannot be.", rank, ranks);
    else if (num_fields < 1 || !fields) fail(h, HEADRACE_WRONG_USE, "At least one field is needed.");
    else if (!(h->fields = calloc((size_t)num_fields, sizeof *h->fields))) fail(h, HEADRACE_SYSTEM, "No memory is left.");
    if (*h->error) return h;
    h->num_fields = num_fields;
    for (int f = 0; f < num_fields; f++) {
        staged *s = &h->fields[f];
        s->name = copy_text(fields[f].name ? fields[f].name : "");
        s->ndim = fields[f].ndim;
        if (!s->name || s->ndim < 1 || s->ndim > HEADRACE_MAX_NDIM) {
            fail(h, HEADRACE_WRONG_USE, "Field %d needs a name and 1 to %d axes; it has %d.", f, HEADRACE_MAX_NDIM, s->ndim);
            return h;
        }
        for (int i = 0; i < s->ndim; i++)
            if ((s->shape[i] = fields[f].shape[i]) < 1) {
                fail(h, HEADRACE_WRONG_USE, "Field %s has an axis of %lld points.", s->name, (long long)s->shape[i]);
                return h;
            }
    }
    if (getenv("HEADRACE_ADDRESS") && *getenv("HEADRACE_ADDRESS")) begin(h);
    else if (getenv("HEADRACE_OUTPUT") && *getenv("HEADRACE_OUTPUT")) name_file(h, getenv("HEADRACE_OUTPUT"));
    return h;
}

void headrace_while_waiting(headrace *h, void (*function)(void *), void *argument)
{
    if (!h) return;
    h->while_waiting = function;
    h->while_waiting_argument = argument;
}

void headrace_close(headrace *h)
{
    if (!h) return;
    if (h->socket && h->session && !h->broken) {
        message m = {0};
        m.kind = BYE;
        send_message(h, &m, NULL);
    }
    pthread_mutex_lock(&h->mutex);
    h->closing = 1;
    pthread_mutex_unlock(&h->mutex);
    if (h->thread_runs) pthread_join(h->thread, NULL);
    shut(h, 1000);
    if (h->context) zmq_ctx_term(h->context);
    if (h->log >= 0) close(h->log);
    if (h->file) fclose(h->file);
    leave_ring(h);
    free(h->file_name);
    free(h->cells);
    for (int f = 0; h->fields && f < h->num_fields; f++) {
        free(h->fields[f].name);
        free(h->fields[f].data);
    }
    pthread_mutex_destroy(&h->mutex);
    free(h->fields);
    free(h->address_list);
    free(h->payload);
    free(h->parameters);
    sodium_memzero(h->token, sizeof h->token);
    free(h);
}

const char *headrace_last_error(const headrace *h) { return h ? h->error : "There is no memory for a handle."; }
int headrace_active(const headrace *h) { return h->active; }
int64_t headrace_num_steps(const headrace *h) { return h->num_steps; }
uint64_t headrace_simulation(const headrace *h) { return h->simulation; }
uint64_t headrace_seed(const headrace *h) { return h->seed; }
uint64_t headrace_bytes_sent(const headrace *h) { return h->bytes; }
double headrace_blocked(const headrace *h) { return h->blocked; }
int headrace_lost(const headrace *h) { return h->simulation_lost; }

int headrace_parameter(const headrace *h, const char *name, double *value)
{
    const char *found = json_find(json_find(h->parameters, "parameters"), name);
    char *end;
    double number;
    if (!found) return HEADRACE_WRONG_USE;
    number = strtod(found, &end);
    if (end == found) return HEADRACE_WRONG_USE;
    *value = number;
    return 0;
}

/* ---- a simulation ---------------------------------------------------------------------------------------------- */

/* Ask and wait for one of two answers: 1, or 0 when the session was lost; negative: refused. */
static int ask(headrace *h, message *question, const char *json, int answer, int other, message *m)
{
    if (json) send_json(h, question, json);
    else send_message(h, question, NULL);
    while (!h->broken) {
        int code = receive(h, 1.0, m);
        if (code < 0) return code;
        if (code && (m->kind == answer || m->kind == other)) return 1;
    }
    return 0;
}

/* The fields as DECLARE says them; NULL without memory. */
static char *declaration(const headrace *h)
{
    static const char *types[] = {"", "float32", "float64", "int32", "int64", "uint8"};
    char *json = malloc(MAX_JSON), name[600];
    size_t n = 0;
    if (!json) return NULL;
    n += (size_t)sprintf(json, "{\"fields\": [");
    for (int f = 0; f < h->num_fields && n + 1024 < MAX_JSON; f++) {
        json_quote(h->fields[f].name, name, sizeof name);
        n += (size_t)sprintf(json + n, "%s{\"name\": %s, \"shape\": [", f ? ", " : "", name);
        for (int i = 0; i < h->fields[f].ndim; i++)
            n += (size_t)sprintf(json + n, "%s%lld", i ? ", " : "", (long long)h->fields[f].shape[i]);
        n += (size_t)sprintf(json + n, "], \"dtype\": \"%s\"}", types[h->type]);
    }
    sprintf(json + n, "]}");
    return json;
}

static int declare(headrace *h)
{
    char *json = declaration(h);
    message question = {0}, m;
    int code;
    if (!json) return fail(h, HEADRACE_SYSTEM, "No memory is left.");
    question.kind = DECLARE;
    code = ask(h, &question, json, DECLARED, DECLARED, &m);
    free(json);
    return code;
}

static int file_error(headrace *h, const char *what)
{
    return fail(h, HEADRACE_SYSTEM, "%s.part cannot be %s: %s. Choose a folder for HEADRACE_OUTPUT that exists, has room and"
                " holds no blocks of another run.", h->file_name, what, strerror(errno));
}

/* Without a study: begin the file that takes this rank's blocks, as messages signed with a token of zeros. */
static int open_file(headrace *h)
{
    char part[4096], json[256], *fields;
    message m = {0}, d = {0};
    int handle;
    snprintf(part, sizeof part, "%s.part", h->file_name);
    if (!access(h->file_name, F_OK)) errno = EEXIST;
    else if ((handle = open(part, O_WRONLY | O_CREAT | O_EXCL, 0644)) >= 0) h->file = fdopen(handle, "wb");
    if (!h->file) return file_error(h, "made");
    fields = declaration(h);
    if (!fields) return fail(h, HEADRACE_SYSTEM, "No memory is left.");
    h->session = 1;
    m.kind = HELLO;
    snprintf(json, sizeof json, "{\"format\": \"headrace-blocks\", \"version\": 1, \"rank\": %d, \"ranks\": %d}", h->rank,
             h->ranks);
    send_json(h, &m, json);
    d.kind = DECLARE;
    send_json(h, &d, fields);
    free(fields);
    return 0;
}

/* After its last block the file gets its own name. */
static int finish_file(headrace *h)
{
    char part[4096];
    int wrong = fflush(h->file) || fsync(fileno(h->file)) || ferror(h->file);
    snprintf(part, sizeof part, "%s.part", h->file_name);
    wrong |= fclose(h->file);
    h->file = NULL;
    return wrong || rename(part, h->file_name) ? file_error(h, "finished") : 0;
}

int headrace_next(headrace *h)
{
    message m;
    if (*h->error) return HEADRACE_WRONG_USE;
    if (h->running && headrace_end(h, NULL) < 0) return HEADRACE_WRONG_USE;
    h->simulation_lost = h->ended = h->word = 0;
    h->next = h->credit = 0;
    h->skip_step = -1;
    h->bytes = 0;
    h->blocked = 0;
    h->began = now();
    h->said = -1;
    for (int i = 0; i < WORDS; i++) h->words[i].step = -1;
    if (!h->active) {
        int code;
        if (h->once) return 0;
        if (h->file_name && (code = open_file(h)) < 0) return code;
        h->once = h->running = 1;
        return 1;
    }
    h->round++;
    for (;;) {
        message question = {0};
        int code;
        if (h->broken) {
            code = join(h);
            if (code < 0) return code;
            code = declare(h);
            if (code < 0) return code;
            if (code == 0) continue;
        }
        question.kind = REQUEST;
        question.value = h->round;
        code = ask(h, &question, NULL, ASSIGN, FINISHED, &m);
        if (code < 0) return code;
        if (code == 1) break;
    }
    if (m.kind == FINISHED) return 0;
    free(h->parameters);
    h->parameters = copy_text(h->payload ? (char *)h->payload : "{}");
    h->simulation = m.simulation;
    h->attempt = m.attempt;
    h->num_steps = (int64_t)m.value;
    h->seed = json_find(h->parameters, "seed") ? strtoull(json_find(h->parameters, "seed"), NULL, 10) : 0;
    h->running = 1;
    return 1;
}

static int size_of(int type) { return type == HEADRACE_UINT8 ? 1 : type == HEADRACE_FLOAT32 || type == HEADRACE_INT32 ? 4 : 8; }

#define CONVERT(FROM, TO)                                                                                              \
    do {                                                                                                               \
        const FROM *from = (const FROM *)source;                                                                       \
        TO *to = (TO *)target;                                                                                         \
        for (int64_t i = 0; i < count; i++) to[i] = (TO)from[i * stride];                                              \
    } while (0)
#define CONVERT_TO(TO)                                                                                                 \
    switch (type) {                                                                                                    \
    case HEADRACE_FLOAT32: CONVERT(float, TO); break;                                                                  \
    case HEADRACE_FLOAT64: CONVERT(double, TO); break;                                                                 \
    case HEADRACE_INT32: CONVERT(int32_t, TO); break;                                                                  \
    case HEADRACE_INT64: CONVERT(int64_t, TO); break;                                                                  \
    default: CONVERT(uint8_t, TO); break;                                                                              \
    }

static void convert_line(int wire, int type, void *target, const void *source, int64_t count, int64_t stride)
{
    switch (wire) {
    case HEADRACE_FLOAT32: CONVERT_TO(float) break;
    case HEADRACE_FLOAT64: CONVERT_TO(double) break;
    case HEADRACE_INT32: CONVERT_TO(int32_t) break;
    case HEADRACE_INT64: CONVERT_TO(int64_t) break;
    default: CONVERT_TO(uint8_t) break;
    }
}

/* Make room for a block of count values of a field. */
static int stage(headrace *h, staged *s, int type, const void *values, int64_t count)
{
    size_t wanted = (size_t)count * (size_t)size_of(h->type);
    unsigned char *larger;
    if (type < HEADRACE_FLOAT32 || type > HEADRACE_UINT8) return fail(h, HEADRACE_WRONG_USE, "Type %d is unknown.", type);
    if (count && !values) return fail(h, HEADRACE_WRONG_USE, "The block of field %s has no values.", s->name);
    if (wanted <= s->capacity) return 0;
    larger = realloc(s->data, wanted);
    if (!larger) return fail(h, HEADRACE_SYSTEM, "No memory is left for a block of %zu bytes.", wanted);
    s->data = larger;
    s->capacity = wanted;
    return 0;
}

static int check_field(headrace *h, int field)
{
    if (!h->running) return fail(h, HEADRACE_WRONG_USE, "No simulation is running; ask for one with headrace_next.");
    if (field < 0 || field >= h->num_fields)
        return fail(h, HEADRACE_WRONG_USE, "Field %d was not declared; there are %d.", field, h->num_fields);
    return 0;
}

int headrace_put(headrace *h, int field, int type, const void *values, const int64_t *strides, const int64_t *offset,
                 const int64_t *shape)
{
    int64_t packed[HEADRACE_MAX_NDIM], index[HEADRACE_MAX_NDIM] = {0}, count = 1, lines;
    staged *s;
    int last, code;
    if ((code = check_field(h, field)) < 0) return code;
    s = &h->fields[field];
    last = s->ndim - 1;
    for (int i = last; i >= 0; i--) {
        if (offset[i] < 0 || shape[i] < 0 || offset[i] + shape[i] > s->shape[i])
            return fail(h, HEADRACE_WRONG_USE, "The block at %lld of length %lld along axis %d does not lie in field %s with %lld"
                        " points there.", (long long)offset[i], (long long)shape[i], i, s->name, (long long)s->shape[i]);
        packed[i] = count;
        count *= shape[i];
    }
    if (!strides) strides = packed;
    if ((code = stage(h, s, type, values, count)) < 0) return code;
    s->by_index = 0;
    s->block_ndim = s->ndim;
    memcpy(s->global, s->shape, sizeof s->shape);
    memcpy(s->offset, offset, (size_t)s->ndim * sizeof *offset);
    memcpy(s->block_shape, shape, (size_t)s->ndim * sizeof *shape);
    lines = count ? count / shape[last] : 0;
    for (int64_t line = 0; line < lines; line++) {
        int64_t from = 0;
        for (int i = 0; i < last; i++) from += index[i] * strides[i];
        convert_line(h->type, type, s->data + line * shape[last] * size_of(h->type),
                     (const unsigned char *)values + from * size_of(type), shape[last], strides[last]);
        for (int i = last - 1; i >= 0 && ++index[i] == shape[i]; i--) index[i] = 0;
    }
    s->put = 1;
    return 0;
}

int headrace_cells(headrace *h, const int64_t *cells, int64_t num_cells)
{
    int64_t total = 1, *copy;
    unsigned char *seen;
    for (int f = 1; f < h->num_fields; f++)
        if (h->fields[f].ndim != h->fields[0].ndim || memcmp(h->fields[f].shape, h->fields[0].shape, sizeof h->fields[0].shape))
            return fail(h, HEADRACE_WRONG_USE, "Cells by number need fields of one shape; %s has another one than %s.",
                        h->fields[f].name, h->fields[0].name);
    for (int i = 0; i < h->fields[0].ndim; i++) total *= h->fields[0].shape[i];
    if (num_cells < 0 || num_cells > total || (num_cells && !cells))
        return fail(h, HEADRACE_WRONG_USE, "A rank cannot own %lld cells of a field with %lld.", (long long)num_cells,
                    (long long)total);
    copy = malloc((size_t)num_cells * sizeof *copy + 1);
    seen = calloc((size_t)total / 8 + 1, 1);
    if (!copy || !seen) {
        free(copy);
        free(seen);
        return fail(h, HEADRACE_SYSTEM, "No memory is left for a list of %lld cells.", (long long)num_cells);
    }
    for (int64_t i = 0; i < num_cells; i++) {
        int wrong = cells[i] < 0 || cells[i] >= total;
        if (wrong || seen[cells[i] / 8] & 1 << cells[i] % 8) {
            free(copy);
            free(seen);
            if (wrong)
                return fail(h, HEADRACE_WRONG_USE, "Cell %lld does not exist: the field's cells are 0 to %lld.",
                            (long long)cells[i], (long long)total - 1);
            return fail(h, HEADRACE_WRONG_USE, "Cell %lld is named twice; each is sent by the one rank that owns it.",
                        (long long)cells[i]);
        }
        seen[cells[i] / 8] |= (unsigned char)(1 << cells[i] % 8);
        copy[i] = cells[i];
    }
    free(seen);
    free(h->cells);
    h->cells = copy;
    h->num_cells = num_cells;
    h->cells_session = 0;
    return 0;
}

int headrace_put_cells(headrace *h, int field, int type, const void *values, int64_t stride)
{
    staged *s;
    int code;
    if ((code = check_field(h, field)) < 0) return code;
    if (!h->cells) return fail(h, HEADRACE_WRONG_USE, "This rank's cells are not known; name them with headrace_cells.");
    s = &h->fields[field];
    if ((code = stage(h, s, type, values, h->num_cells)) < 0) return code;
    convert_line(h->type, type, s->data, values, h->num_cells, stride);
    s->by_index = s->block_ndim = 1;
    s->global[0] = s->block_shape[0] = h->num_cells;
    s->offset[0] = 0;
    s->put = 1;
    return 0;
}

static int write_log(headrace *h, const char *record)
{
    char line[1100];
    int length;
    if (h->log < 0) return 0;
    length = snprintf(line, sizeof line, "%08x %s\n", headrace_wire_crc32(0, record, strlen(record)), record);
    if (write(h->log, line, (size_t)length) != length)
        return fail(h, HEADRACE_SYSTEM, "The log of what was sent cannot be written: %s.", strerror(errno));
    return 0;
}

static void take(headrace *h, const message *m)
{
    if (m->simulation != h->simulation || m->attempt != h->attempt) return;
    if (m->kind == CREDIT) {
        if ((int64_t)m->value > h->credit) h->credit = (int64_t)m->value;
    } else if (m->kind == ACK) {
        h->words[m->step % WORDS].step = (int64_t)m->step;
        h->words[m->step % WORDS].word = (int)(m->value & 255);
        if ((int64_t)m->step > h->said) h->said = (int64_t)m->step;
        if ((int64_t)(m->value >> 8) > h->credit) h->credit = (int64_t)(m->value >> 8);
        if (m->flags & SKIP_NEXT) h->skip_step = (int64_t)m->step + 1;
    } else if (m->kind == ENDED) {
        h->ended = 1;
    }
}

static int has_word(const headrace *h, int64_t step) { return h->said >= step; }

static int word_to(const headrace *h, int64_t step)
{
    return h->words[step % WORDS].step == step ? h->words[step % WORDS].word : HEADRACE_CONTINUE;
}

/* Wait for credit for a step (credit != 0) or for the word to the step before. */
static int wait_for(headrace *h, int credit, int64_t step)
{
    double began = now();
    int code = 0;
    while (credit ? h->credit <= step : !has_word(h, step - 1)) {
        message m;
        if (h->broken) {
            h->simulation_lost = 1;
            break;
        }
        code = receive(h, 1.0, &m);
        if (code < 0) break;
        if (code) take(h, &m);
        if (step > 0 && has_word(h, step - 1) && word_to(h, step - 1) == HEADRACE_STOP) break;
    }
    if (step > 0 && has_word(h, step - 1)) h->word = word_to(h, step - 1);
    h->blocked += now() - began;
    return code < 0 ? code : 0;
}

/* A message about this rank's share of a step. */
static message about_step(const headrace *h, uint16_t kind, int64_t step, double time)
{
    message m = {0};
    m.kind = kind;
    m.simulation = h->simulation;
    m.attempt = h->attempt;
    m.step = (uint64_t)step;
    m.time = time;
    m.block = (uint32_t)h->rank;
    m.num_blocks = (uint32_t)h->ranks;
    return m;
}

/* Tell the session which cells this rank owns, where it does not know them yet. */
static void send_cells(headrace *h)
{
    int64_t most = MAX_BLOCK / 8;
    unsigned char *table;
    if (!h->num_cells || h->cells_session == h->session || !(table = malloc((size_t)most * 8))) return;
    for (int64_t first = 0; first < h->num_cells; first += most) {
        int64_t count = h->num_cells - first < most ? h->num_cells - first : most;
        message m = {0};
        for (int64_t i = 0; i < count; i++) store(table + 8 * i, (uint64_t)h->cells[first + i], 8);
        m.kind = CELLS;
        m.type = HEADRACE_INT64;
        m.ndim = 1;
        m.shape[0] = h->num_cells;
        m.offset[0] = first;
        m.block_shape[0] = count;
        send_payload(h, &m, table, (size_t)count * 8);
    }
    free(table);
    h->cells_session = h->session;
}

/* Send a contiguous part of a field's block: rows first..stop of axis `axis`, with single indices before it. */
static int send_part(headrace *h, int f, int axis, const int64_t *corner, int64_t first, int64_t stop,
                     const unsigned char *data, int64_t step, double time, int last_part)
{
    staged *s = &h->fields[f];
    message m = about_step(h, BLOCK, step, time);
    char record[1024];
    int64_t bytes = size_of(h->type);
    uint64_t position;
    size_t n;
    int code, placed;
    m.field = (uint16_t)f;
    m.type = h->type;
    m.ndim = s->block_ndim;
    for (int i = 0; i < s->block_ndim; i++) {
        m.shape[i] = s->global[i];
        m.offset[i] = s->offset[i] + (i < axis ? corner[i] : i == axis ? first : 0);
        m.block_shape[i] = i < axis ? 1 : i == axis ? stop - first : s->block_shape[i];
        bytes *= m.block_shape[i];
    }
    m.length = (uint64_t)bytes;
    m.crc = headrace_wire_crc32(0, data, m.length);
    m.flags = (h->strict ? PAYLOAD_SIGNED : 0u) | (s->by_index ? BY_INDEX : 0u);
    m.value = (uint64_t)last_part;
    n = (size_t)sprintf(record, "{\"e\": \"block\", \"s\": %llu, \"a\": %lu, \"f\": %d, \"t\": %lld, \"o\": [",
                        (unsigned long long)h->simulation, (unsigned long)h->attempt, f, (long long)step);
    for (int i = 0; i < m.ndim; i++) n += (size_t)sprintf(record + n, "%s%lld", i ? ", " : "", (long long)m.offset[i]);
    n += (size_t)sprintf(record + n, "], \"c\": %lu", (unsigned long)m.crc);
    if (s->by_index) n += (size_t)sprintf(record + n, ", \"r\": %d", h->rank);
    sprintf(record + n, "}");
    while ((placed = place_in_ring(h, data, m.length, &position)) == 0) {
        message answer;
        double began = now();
        if (h->broken) return 0;
        code = receive(h, 0.001, &answer);
        h->blocked += now() - began;
        if (code < 0) return code;
        if (code) take(h, &answer);
    }
    if (placed > 0) {
        m.flags |= IN_RING;
        m.value |= 2 * position;
    }
    if ((code = write_log(h, record)) < 0) return code;
    send_message(h, &m, data);
    h->bytes += m.length;
    return 0;
}

/* Cut a block along its first axes into contiguous parts of at most 4 MiB. */
static int send_parts(headrace *h, int f, int axis, int64_t *corner, const unsigned char *data, int64_t step, double time,
                      int last_field)
{
    staged *s = &h->fields[f];
    int64_t row = size_of(h->type), n = s->block_shape[axis], rows;
    int code = 0, outer_last = last_field;
    for (int i = axis + 1; i < s->block_ndim; i++) row *= s->block_shape[i];
    for (int i = 0; i < axis; i++) outer_last = outer_last && corner[i] == s->block_shape[i] - 1;
    if (row > MAX_BLOCK && axis + 1 < s->block_ndim) {
        for (int64_t i = 0; i < n && code >= 0; i++) {
            corner[axis] = i;
            code = send_parts(h, f, axis + 1, corner, data + i * row, step, time, last_field);
        }
        return code;
    }
    rows = MAX_BLOCK / row > 0 ? MAX_BLOCK / row : 1;
    for (int64_t first = 0; first < n && code >= 0; first += rows) {
        int64_t stop = first + rows < n ? first + rows : n;
        code = send_part(h, f, axis, corner, first, stop, data + first * row, step, time, outer_last && stop == n);
    }
    return code;
}

static int64_t count_of(const staged *s)
{
    int64_t count = 1;
    for (int i = 0; i < s->block_ndim; i++) count *= s->block_shape[i];
    return count;
}

/* Send the blocks of all fields that were put; last: the last one that is not empty. */
static int send_blocks(headrace *h, int64_t step, double time, int last)
{
    int code = 0;
    for (int f = 0; f < h->num_fields && code >= 0; f++) {
        int64_t corner[HEADRACE_MAX_NDIM] = {0};
        if (h->fields[f].by_index) send_cells(h);
        if (count_of(&h->fields[f])) code = send_parts(h, f, 0, corner, h->fields[f].data, step, time, f == last);
    }
    return code;
}

int headrace_send(headrace *h, int64_t step, double time)
{
    int code, last = -1;
    if (!h->running) return fail(h, HEADRACE_WRONG_USE, "No simulation is running; ask for one with headrace_next.");
    if (step != h->next || (h->num_steps >= 0 && step >= h->num_steps))
        return fail(h, HEADRACE_WRONG_USE, "Step %lld cannot be sent now: the next step is %lld of %lld.", (long long)step,
                    (long long)h->next, (long long)h->num_steps);
    if (!isfinite(time))
        return fail(h, HEADRACE_WRONG_USE, "Step %lld has time %g, which is not finite.", (long long)step, time);
    for (int f = 0; f < h->num_fields; f++) {
        if (!h->fields[f].put)
            return fail(h, HEADRACE_WRONG_USE, "Field %s of step %lld was not put.", h->fields[f].name, (long long)step);
        if (count_of(&h->fields[f])) last = f;
    }
    for (int f = 0; f < h->num_fields; f++) h->fields[f].put = 0;
    h->next++;
    if (h->file) {
        if ((code = send_blocks(h, step, time, last)) < 0) return code;
        return fflush(h->file) || ferror(h->file) ? file_error(h, "written") : h->word;
    }
    /* A rank whose session is lost computes on and sends nothing: leaving alone would hang the others inside MPI. */
    if (!h->active || h->simulation_lost || h->word == HEADRACE_STOP) return h->word;
    if (h->skips && step > 0) {
        if ((code = wait_for(h, 0, step)) < 0) return code;
        if (h->simulation_lost || h->word == HEADRACE_STOP) return h->word;
        if (h->skip_step == step) {
            message m = about_step(h, SKIP, step, time);
            send_message(h, &m, NULL);
            return h->word;
        }
    }
    if ((code = wait_for(h, 1, step)) < 0) return code;
    if (h->simulation_lost || h->word == HEADRACE_STOP) return h->word;
    if ((code = send_blocks(h, step, time, last)) < 0) return code;
    if ((code = wait_for(h, 0, step)) < 0) return code;
    return h->word;
}

/* Send END with a status (0 completed, 1 failed, 2 stopped) and what this rank measured. */
static void send_end(headrace *h, const char *failure, int status)
{
    char reason[2048], json[4096];
    message m = {0};
    json_quote(failure ? failure : "", reason, sizeof reason);
    snprintf(json, sizeof json, "{\"reason\": %s, \"blocked\": %.9g, \"elapsed\": %.9g, \"bytes\": %llu}", reason, h->blocked,
             now() - h->began, (unsigned long long)h->bytes);
    m.kind = END;
    m.simulation = h->simulation;
    m.attempt = h->attempt;
    m.value = (uint64_t)status;
    send_json(h, &m, json);
}

int headrace_end(headrace *h, const char *failure)
{
    char record[128];
    message m;
    double deadline;
    int status, code = 0;
    if (!h->running) return 0;
    h->running = 0;
    if (h->file) {
        send_end(h, failure, failure ? 1 : 0);
        return finish_file(h);
    }
    if (!h->active) return 0;
    if (!failure && h->next > 0 && !h->simulation_lost && h->word != HEADRACE_STOP) code = wait_for(h, 0, h->next);
    if (h->broken) h->simulation_lost = 1;
    if (code < 0) return code;
    status = failure ? 1 : h->word == HEADRACE_STOP ? 2 : 0;
    snprintf(record, sizeof record, "{\"e\": \"end\", \"s\": %llu, \"a\": %lu, \"status\": %d}",
             (unsigned long long)h->simulation, (unsigned long)h->attempt, status);
    if ((code = write_log(h, record)) < 0) return code;
    if (h->simulation_lost) return 0;
    send_end(h, failure, status);
    /* After a failure the other ranks may never come to their end: do not wait for them. */
    deadline = now() + 2;
    while (!h->ended && !h->broken && (!failure || now() < deadline)) {
        if ((code = receive(h, 0.5, &m)) < 0) return code;
        if (code) take(h, &m);
    }
    if (h->broken) h->simulation_lost = 1;
    return 0;
}
