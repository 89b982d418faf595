/* A ground-truth server: streams tokens on a schedule and keeps when it wrote each of them.

   truth PORT LOG TTFT_US ITL_US     (PORT 0: any that is free; it is printed)

   OpenAI chat and text completions over HTTP/1.1, one send a token. A request's first token is due
   TTFT after the kernel received it, each later one ITL after the one before it was due; with ITL 0
   tokens are written as fast as they are taken. On SIGTERM the log is written, int64 throughout:
   for each request its serial number, when the kernel received it, the count of its tokens, then
   for each token the time before and after its send; CLOCK_MONOTONIC nanoseconds. The serial number
   is what the answer gives as its prompt_tokens. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 16, HEAD = 1 << 16, SPIN_NS = 20000 };
static const char *WORDS[] = {" the", " a", " token", " of", " measured", " time", ",", " and",
                              " server", " wrote", " it", " exactly", " then", ".", " so", " on"};

typedef struct {
  int64_t serial, received, count, *times; /* two a token */
} Request;

typedef struct {
  int used, chat, stream, usage, tokens, written, in_size, blocked;
  int64_t due;
  Request *request;
  char *in, *out, id[16];
  int out_at, out_size, out_room;
} Stream;

static Stream streams[MOST];
static Request **requests;
static int64_t request_count, request_room;
/* By due time: first tokens, later tokens. */
static struct {
  int fd;
  Request *request;
} queues[2][MOST + 1];
static int heads[2], tails[2];
static struct {
  char data[512];
  int size, id_at;
} events[2][16]; /* of texts and of chats, a word each, the serial number left out */
static int64_t ttft, itl;
static int epoll_fd;
static volatile sig_atomic_t ended;

static int64_t now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void stop(int number) { ended = number; }

static void enqueue(int which, int fd) {
  queues[which][tails[which]].fd = fd;
  queues[which][tails[which]].request = streams[fd].request;
  tails[which] = (tails[which] + 1) % (MOST + 1);
}

static int64_t first_due(int which) {
  return heads[which] == tails[which] ? INT64_MAX : streams[queues[which][heads[which]].fd].due;
}

static void drop(int fd) {
  close(fd);
  streams[fd].used = 0;
  streams[fd].request = NULL;
}

/* What one send could not take waits for the socket. */
static void put(int fd, const char *data, int size) {
  Stream *s = &streams[fd];
  int sent = s->blocked ? 0 : (int)send(fd, data, size, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN) {
      drop(fd);
      return;
    }
    sent = 0;
  }
  if (sent == size) return;
  int left = size - sent, held = s->out_size - s->out_at;
  memmove(s->out, s->out + s->out_at, held);
  if (held + left > s->out_room) s->out = realloc(s->out, s->out_room = 2 * (held + left));
  memcpy(s->out + held, data + sent, left);
  s->out_at = 0;
  s->out_size = held + left;
  if (!s->blocked) {
    s->blocked = 1;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd,
              &(struct epoll_event){.events = EPOLLIN | EPOLLOUT, .data.fd = fd});
  }
}

static int event(char *to, const Stream *s, const char *delta, const char *finish, int usage) {
  char line[1024];
  int size = snprintf(line, sizeof line,
                      "data: {\"id\":\"%s-%012lld\",\"object\":\"%s\",\"created\":1700000000,"
                      "\"model\":\"null\",\"choices\":[",
                      s->chat ? "chatcmpl" : "cmpl", (long long)s->request->serial,
                      s->chat ? "chat.completion.chunk" : "text_completion");
  if (delta)
    size += snprintf(line + size, sizeof line - size,
                     s->chat ? "{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}"
                             : "{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":%s}",
                     delta, finish);
  size += snprintf(line + size, sizeof line - size, "]");
  if (usage)
    size += snprintf(line + size, sizeof line - size,
                     ",\"usage\":{\"prompt_tokens\":%lld,\"total_tokens\":%lld,"
                     "\"completion_tokens\":%d}",
                     (long long)s->request->serial, (long long)(s->request->serial + s->tokens),
                     s->tokens);
  size += snprintf(line + size, sizeof line - size, "}\n\n");
  return sprintf(to, "%x\r\n%s\r\n", size, line);
}

static const char *delta_of(int chat, int word) {
  static char delta[64];
  sprintf(delta, chat ? "\"content\":\"%s\"" : "\"text\":\"%s\"", WORDS[word]);
  return delta;
}

static void render_events(void) {
  Request nothing = {0};
  for (int chat = 0; chat < 2; chat++)
    for (int word = 0; word < 16; word++) {
      Stream s = {.chat = chat, .request = &nothing};
      char *data = events[chat][word].data;
      events[chat][word].size = event(data, &s, delta_of(chat, word), "null", 0);
      events[chat][word].id_at = (int)(strstr(data, "-000000000000") + 1 - data);
    }
}

static void whole(int fd) {
  static char body[1 << 20], answer[(1 << 20) + 512];
  Stream *s = &streams[fd];
  char *at = body;
  at += sprintf(at, "{\"id\":\"cmpl-%lld\",\"object\":\"%s\",\"created\":1700000000,\"model\":"
                    "\"null\",\"choices\":[{\"index\":0,%s\"",
                (long long)s->request->serial, s->chat ? "chat.completion" : "text_completion",
                s->chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
  for (int k = 0; k < s->tokens && at < body + sizeof body - 512; k++)
    at = stpcpy(at, WORDS[k % 16]);
  at += sprintf(at, "\"%s,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%lld,"
                    "\"total_tokens\":%lld,\"completion_tokens\":%d}}",
                s->chat ? "}" : "", (long long)s->request->serial,
                (long long)(s->request->serial + s->tokens), s->tokens);
  int size = sprintf(answer,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                     "Content-Length: %d\r\n\r\n%s",
                     (int)(at - body), body);
  put(fd, answer, size);
}

/* Write the token that is due; the last one brings the end of the answer with it. */
static void write_token(int fd) {
  static char data[4096];
  Stream *s = &streams[fd];
  Request *r = s->request;
  int size = 0, last = s->written + 1 == s->tokens, word = (s->written + r->serial) % 16;
  if (!s->stream) {
    r->times[0] = now(CLOCK_MONOTONIC);
    whole(fd);
    r->times[1] = now(CLOCK_MONOTONIC);
    r->count = 1;
    if (s->used) s->request = NULL;
    return;
  }
  if (!last) {
    size = events[s->chat][word].size;
    memcpy(data, events[s->chat][word].data, size);
    memcpy(data + events[s->chat][word].id_at, s->id, 12);
  } else {
    size = event(data, s, delta_of(s->chat, word), "\"length\"", 0);
    if (s->usage) size += event(data + size, s, NULL, "null", 1);
    size += sprintf(data + size, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  }
  int64_t before = now(CLOCK_MONOTONIC);
  put(fd, data, size);
  r->times[2 * s->written] = before;
  r->times[2 * s->written + 1] = now(CLOCK_MONOTONIC);
  if (!s->used) return;
  r->count = ++s->written;
  if (last) {
    s->request = NULL;
    return;
  }
  s->due = itl ? s->due + itl : before;
  enqueue(1, fd);
}

static int number(const char *body, const char *key, int otherwise) {
  const char *at = strstr(body, key);
  if (!at) return otherwise;
  at += strlen(key);
  at += strspn(at, " :");
  return atoi(at);
}

static int yes(const char *body, const char *key) {
  const char *at = strstr(body, key);
  return at && !strncmp(at + strlen(key) + strspn(at + strlen(key), " :"), "true", 4);
}

static void plain(int fd, const char *body) {
  char answer[512];
  put(fd, answer,
      sprintf(answer,
              "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
              strlen(body), body));
}

static void answer(int fd, char *head, char *body, int64_t received) {
  Stream *s = &streams[fd];
  if (strncmp(head, "POST ", 5)) {
    if (!strncmp(head, "GET /v1/models", 14))
      plain(fd, "{\"object\":\"list\",\"data\":[{\"id\":\"null\",\"object\":\"model\","
                "\"max_model_len\":1000000}]}");
    else if (!strncmp(head, "GET /health", 11) || !strncmp(head, "GET /metrics", 12))
      plain(fd, "");
    else
      put(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 45);
    return;
  }
  s->chat = !!strstr(head, "/chat/");
  if (!strstr(head, "/completions")) {
    put(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 45);
    return;
  }
  s->tokens = number(body, "\"max_completion_tokens\"", number(body, "\"max_tokens\"", 16));
  if (s->tokens < 1) s->tokens = 1;
  s->stream = yes(body, "\"stream\"");
  s->usage = yes(body, "\"include_usage\"");
  s->written = 0;
  Request *r = s->request = calloc(1, sizeof *r);
  r->serial = request_count + 1;
  sprintf(s->id, "%012lld", (long long)r->serial);
  r->received = received;
  r->times = calloc(2 * s->tokens, sizeof *r->times);
  if (request_count == request_room)
    requests = realloc(requests, (request_room = 2 * request_room + 1024) * sizeof *requests);
  requests[request_count++] = r;
  if (s->stream) {
    char data[2048];
    int size = sprintf(data, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                             "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
    if (s->chat) size += event(data + size, s, "\"role\":\"assistant\",\"content\":\"\"", "null", 0);
    put(fd, data, size);
    if (!s->used) return;
  }
  s->due = received + ttft + (s->stream ? 0 : (s->tokens - 1) * itl);
  if (s->stream || !itl) {
    enqueue(0, fd);
  } else { /* answers in one piece are due in no order: keep that queue sorted */
    int at = tails[0];
    enqueue(0, fd);
    while (at != heads[0]) {
      int before = (at + MOST) % (MOST + 1);
      if (streams[queues[0][before].fd].due <= s->due) break;
      queues[0][at] = queues[0][before];
      queues[0][before].fd = fd;
      queues[0][before].request = r;
      at = before;
    }
  }
}

static void receive(int fd, int64_t offset) {
  Stream *s = &streams[fd];
  char control[128];
  struct iovec part = {s->in + s->in_size, HEAD - 1 - s->in_size};
  struct msghdr message = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
  ssize_t size = recvmsg(fd, &message, 0);
  if (size <= 0) {
    if (size < 0 && errno == EAGAIN) return;
    drop(fd);
    return;
  }
  int64_t received = now(CLOCK_MONOTONIC);
  struct cmsghdr *c = CMSG_FIRSTHDR(&message);
  if (c && c->cmsg_type == SCM_TIMESTAMPNS) {
    struct timespec t;
    memcpy(&t, CMSG_DATA(c), sizeof t);
    received = t.tv_sec * 1000000000LL + t.tv_nsec + offset;
  }
  s->in_size += size;
  s->in[s->in_size] = 0;
  char *body = strstr(s->in, "\r\n\r\n");
  if (!body) {
    if (s->in_size >= HEAD - 1) drop(fd);
    return;
  }
  body += 4;
  char *field = strcasestr(s->in, "\r\ncontent-length:");
  int wanted = field && field < body ? atoi(field + 17) : 0;
  if (s->in_size - (body - s->in) < wanted) {
    if (s->in_size >= HEAD - 1) drop(fd);
    return;
  }
  s->in_size = 0;
  answer(fd, s->in, body, received);
}

static void flush_out(int fd) {
  Stream *s = &streams[fd];
  ssize_t sent = send(fd, s->out + s->out_at, s->out_size - s->out_at, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN) {
    drop(fd);
    return;
  }
  if (sent > 0) s->out_at += sent;
  if (s->out_at == s->out_size) {
    s->blocked = s->out_at = s->out_size = 0;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
  }
}

static int64_t wall_offset(void) {
  int64_t best = INT64_MAX, offset = 0;
  for (int k = 0; k < 20; k++) {
    int64_t before = now(CLOCK_MONOTONIC), wall = now(CLOCK_REALTIME),
            after = now(CLOCK_MONOTONIC);
    if (after - before < best) {
      best = after - before;
      offset = (before + after) / 2 - wall;
    }
  }
  return offset;
}

static void take_in(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    if (fd >= MOST) {
      close(fd);
      continue;
    }
    Stream *s = &streams[fd];
    char *in = s->in ? s->in : malloc(HEAD), *out = s->out;
    int room = s->out_room;
    *s = (Stream){.used = 1, .in = in, .out = out, .out_room = room};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
  }
}

static void write_log(const char *path) {
  FILE *log = fopen(path, "wb");
  for (int64_t k = 0; k < request_count; k++) {
    Request *r = requests[k];
    fwrite(r, sizeof(int64_t), 3, log);
    fwrite(r->times, sizeof(int64_t), 2 * r->count, log);
  }
  fclose(log);
}

int main(int count, char **words) {
  if (count != 5) return 2;
  ttft = atoll(words[3]) * 1000;
  itl = atoll(words[4]) * 1000;
  signal(SIGTERM, stop);
  signal(SIGINT, stop);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  prctl(PR_SET_TIMERSLACK, 1);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in where = {.sin_family = AF_INET,
                              .sin_port = htons(atoi(words[1])),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof where;
  if (bind(listener, (struct sockaddr *)&where, size) || listen(listener, 16384)) {
    perror("truth");
    return 1;
  }
  getsockname(listener, (struct sockaddr *)&where, &size);
  printf("%d\n", ntohs(where.sin_port));
  fflush(stdout);
  render_events();
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener,
            &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer,
            &(struct epoll_event){.events = EPOLLIN, .data.fd = timer});
  struct epoll_event found[256];
  int64_t offset = wall_offset(), sampled = now(CLOCK_MONOTONIC), armed = 0;
  while (!ended) {
    int64_t at = now(CLOCK_MONOTONIC), due;
    if (at - sampled > 20000000) {
      offset = wall_offset();
      sampled = at;
    }
    for (int budget = 64; budget; budget--) {
      int which = first_due(1) < first_due(0);
      due = first_due(which);
      if (due > at && due > (at = now(CLOCK_MONOTONIC))) break;
      int fd = queues[which][heads[which]].fd;
      Request *request = queues[which][heads[which]].request;
      heads[which] = (heads[which] + 1) % (MOST + 1);
      if (!streams[fd].used || streams[fd].request != request) continue; /* its client has gone */
      if (streams[fd].blocked && !itl) { /* the client is slower: as fast as it takes them */
        enqueue(1, fd);
        break;
      }
      write_token(fd);
    }
    due = first_due(0) < first_due(1) ? first_due(0) : first_due(1);
    int wait = 0;
    if (due == INT64_MAX) {
      wait = 100;
    } else if (due - SPIN_NS > now(CLOCK_MONOTONIC)) {
      if (armed != due) {
        armed = due;
        struct itimerspec spec = {
            .it_value = {(due - SPIN_NS) / 1000000000, (due - SPIN_NS) % 1000000000}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, NULL);
      }
      wait = 100;
    }
    int n = epoll_wait(epoll_fd, found, 256, wait);
    for (int k = 0; k < n; k++) {
      int fd = found[k].data.fd;
      uint64_t expired;
      if (fd == listener) {
        take_in(listener);
      } else if (fd == timer) {
        if (read(timer, &expired, sizeof expired)) armed = 0;
      } else if (streams[fd].used) {
        if (found[k].events & EPOLLOUT) flush_out(fd);
        if (streams[fd].used && found[k].events & ~EPOLLOUT) receive(fd, offset);
      }
    }
  }
  write_log(words[2]);
  return 0;
}
