#include "link.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "load.h"

#define FRAME (64u << 10) /* bytes of payload in one WebSocket frame, at most */

#ifdef HAVE_OPENSSL
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

struct link {
    void *tls; /* SSL *, or NULL */
    bool upgraded;
    char *reply; /* to the upgrade, while it is incomplete */
    size_t reply_len;
    uint8_t head[10]; /* of the frame that is coming in */
    size_t head_len;
    uint64_t left; /* bytes of its payload that have not come yet */
    bool control;
    uint8_t *frame; /* going out */
    size_t frame_off, frame_len;
};

/* -- TLS ---------------------------------------------------------------------------------------------------------- */

#ifdef HAVE_OPENSSL

static SSL_CTX *contexts[1000];

/* One context for each certificate; sessions are never resumed, so each connection pays for a whole handshake. */
static SSL_CTX *context_of(long number) {
    char path[512];
    size_t place = *opt.cert ? (size_t)number % (sizeof contexts / sizeof *contexts) : 0;
    if (contexts[place]) return contexts[place];
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (!context) give_up("TLS: no memory");
    SSL_CTX_set_mode(
        context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS
    );
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    if (SSL_CTX_load_verify_locations(context, opt.ca, NULL) != 1) give_up("ca=%s cannot be read", opt.ca);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (*opt.cert) {
        fill_template(path, sizeof path, opt.cert, (long)place);
        if (SSL_CTX_use_certificate_chain_file(context, path) != 1) give_up("cert=%s cannot be read", path);
        fill_template(path, sizeof path, opt.key, (long)place);
        if (SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM) != 1) give_up("key=%s cannot be read", path);
    }
    return contexts[place] = context;
}

static void *open_tls(int fd, long number) {
    SSL *tls = SSL_new(context_of(number));
    if (!tls || SSL_set_fd(tls, fd) != 1) give_up("TLS: no memory");
    SSL_set_connect_state(tls);
    return tls;
}

/* What SSL_read and its kind returned, as `recv` would say it. */
static ssize_t verdict(SSL *tls, int result) {
    if (result > 0) return result;
    int why = SSL_get_error(tls, result);
    ERR_clear_error();
    if (why == SSL_ERROR_ZERO_RETURN) return 0;
    errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
    return -1;
}

static int shake_tls(void *tls) {
    ssize_t result = verdict(tls, SSL_do_handshake(tls));
    return result > 0 ? 1 : result < 0 && errno == EAGAIN ? 0 : -1;
}

/* As much as there is: records are small, and the caller asks no second time. */
static ssize_t read_tls(void *tls, uint8_t *bytes, size_t room) {
    size_t got = 0;
    while (got < room) {
        ssize_t n = verdict(tls, SSL_read(tls, bytes + got, (int)(room - got)));
        if (n <= 0) return got ? (ssize_t)got : n;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

static ssize_t write_tls(void *tls, const void *bytes, size_t n) {
    return verdict(tls, SSL_write(tls, bytes, n > 1u << 30 ? 1 << 30 : (int)n));
}

static void close_tls(void *tls) {
    SSL_shutdown(tls);
    ERR_clear_error();
    SSL_free(tls);
}

#else

static void *open_tls(int fd, long number) {
    give_up("tls=1 for client %ld (%d): built without OpenSSL; install libssl-dev and build again", number, fd);
}
static int shake_tls(void *tls) { return tls ? 1 : -1; }
static ssize_t read_tls(void *tls, uint8_t *bytes, size_t room) { return tls && bytes && room ? 0 : -1; }
static ssize_t write_tls(void *tls, const void *bytes, size_t n) { return tls && bytes && n ? 0 : -1; }
static void close_tls(void *tls) { free(tls); }

#endif

static ssize_t raw_recv(struct link *link, int fd, void *bytes, size_t room) {
    return link->tls ? read_tls(link->tls, bytes, room) : recv(fd, bytes, room, 0);
}

static ssize_t raw_send(struct link *link, int fd, const void *bytes, size_t n) {
    return link->tls ? write_tls(link->tls, bytes, n) : send(fd, bytes, n, MSG_NOSIGNAL);
}

/* -- WebSocket (RFC 6455) ------------------------------------------------------------------------------------------ */

static const uint8_t mask[8] = {0x3a, 0x91, 0x5c, 0xe7, 0x3a, 0x91, 0x5c, 0xe7};

/* Sends what waits of the last frame. 1: nothing is left. */
static int send_frame(struct link *link, int fd) {
    while (link->frame_off < link->frame_len) {
        ssize_t n = raw_send(link, fd, link->frame + link->frame_off, link->frame_len - link->frame_off);
        if (n <= 0) return 0;
        link->frame_off += (size_t)n;
    }
    return 1;
}

static void ask_for_upgrade(struct link *link) {
    link->frame_len = (size_t)snprintf(
        (char *)link->frame, FRAME,
        "GET /mqtt HTTP/1.1\r\nHost: %s:%ld\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n",
        opt.host, opt.port
    );
}

static int shake_websocket(struct link *link, int fd) {
    char *reply = link->reply;
    if (!reply) {
        link->frame = malloc(FRAME + 14);
        reply = link->reply = calloc(4096, 1);
        if (!reply || !link->frame) give_up("out of memory");
        ask_for_upgrade(link);
    }
    if (!send_frame(link, fd) && errno != EAGAIN) return -1;
    while (!strstr(reply, "\r\n\r\n")) {
        /* one byte at a time: what follows the reply belongs to frames */
        ssize_t n = link->reply_len < 4095 ? raw_recv(link, fd, reply + link->reply_len, 1) : 0;
        if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
        link->reply_len++;
    }
    link->upgraded = !strncmp(reply, "HTTP/1.1 101", 12);
    free(reply);
    link->reply = NULL;
    return link->upgraded ? 1 : -1;
}

static size_t head_size(const struct link *link) {
    if (link->head_len < 2) return 2;
    return link->head[1] == 126 ? 4 : link->head[1] == 127 ? 10 : 2;
}

static uint64_t payload_size(const struct link *link) {
    uint64_t size = 0;
    if (link->head[1] < 126) return link->head[1];
    for (size_t i = 2; i < link->head_len; i++) size = size << 8 | link->head[i];
    return size;
}

/* Takes the frames' heads out of what came, in place; how many bytes of MQTT remain. */
static size_t unwrap(struct link *link, uint8_t *bytes, size_t n) {
    size_t in = 0, out = 0;
    while (in < n) {
        if (!link->left) {
            link->head[link->head_len++] = bytes[in++];
            if (link->head_len < head_size(link)) continue;
            if (link->head_len == 2 && link->head[1] & 0x80) give_up("a masked WebSocket frame came");
            link->left = payload_size(link);
            link->control = link->head[0] & 8;
            link->head_len = 0;
            continue;
        }
        size_t part = link->left < n - in ? (size_t)link->left : n - in;
        if (!link->control) {
            memmove(bytes + out, bytes + in, part);
            out += part;
        }
        in += part;
        link->left -= part;
    }
    return out;
}

static void wrap(struct link *link, const uint8_t *bytes, size_t n) {
    uint8_t *out = link->frame;
    *out++ = 0x82;
    if (n < 126) {
        *out++ = (uint8_t)(0x80 | n);
    } else if (n < 65536) {
        *out++ = 0x80 | 126;
        *out++ = (uint8_t)(n >> 8);
        *out++ = (uint8_t)n;
    } else {
        *out++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) *out++ = (uint8_t)((uint64_t)n >> shift);
    }
    memcpy(out, mask, 4);
    out += 4;
    for (size_t i = 0; i < n; i++) out[i] = bytes[i] ^ mask[i & 7];
    link->frame_off = 0;
    link->frame_len = (size_t)(out - link->frame) + n;
}

/* -- both ---------------------------------------------------------------------------------------------------------- */

struct link *open_link(int fd, long number) {
    if (!opt.tls && !opt.websocket) return NULL;
    struct link *link = calloc(1, sizeof *link);
    if (!link) give_up("out of memory");
    if (opt.tls) link->tls = open_tls(fd, number);
    return link;
}

int shake_hands(struct link *link, int fd) {
    if (!link) return 1;
    if (link->tls && !link->reply) { /* with a reply begun, TLS is done */
        int done = shake_tls(link->tls);
        if (done != 1) return done;
    }
    return opt.websocket ? shake_websocket(link, fd) : 1;
}

ssize_t link_recv(struct link *link, int fd, void *bytes, size_t room) {
    if (!link) return recv(fd, bytes, room, 0);
    for (;;) {
        ssize_t n = raw_recv(link, fd, bytes, room);
        if (n <= 0 || !link->upgraded) return n;
        n = (ssize_t)unwrap(link, bytes, (size_t)n);
        if (n) return n;
    }
}

ssize_t link_send(struct link *link, int fd, const void *bytes, size_t n) {
    if (!link) return send(fd, bytes, n, MSG_NOSIGNAL);
    if (!link->upgraded) return raw_send(link, fd, bytes, n);
    if (!send_frame(link, fd)) return -1;
    if (n > FRAME) n = FRAME;
    if (n) wrap(link, bytes, n);
    send_frame(link, fd);
    return (ssize_t)n;
}

bool link_waits(const struct link *link) { return link && link->frame_off < link->frame_len; }

void close_link(struct link *link) {
    if (!link) return;
    if (link->tls) close_tls(link->tls);
    free(link->reply);
    free(link->frame);
    free(link);
}
