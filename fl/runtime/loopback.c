/* A shim that is preloaded into TFF's worker process. By itself the worker binds the unspecified address, and so offers
 * an unauthenticated executor to the whole network: whoever reaches it can read and write files as its owner.
 *
 * bind() replaces the unspecified address by loopback.
 * accept() and accept4() refuse other accounts: all accounts of the machine share loopback, and TCP has no peer
 * credentials. So they ask the kernel who owns the socket at the other end of each connection, and close a connection
 * that is not of the worker's own user id before the worker sees it. Without a clear answer they refuse it, too. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);
typedef int (*accept4_function)(int, struct sockaddr *, socklen_t *, int);

int bind(int descriptor, const struct sockaddr *address, socklen_t length) {
  bind_function real_bind = (bind_function)dlsym(RTLD_NEXT, "bind");

  struct sockaddr_storage copy;
  if (address && length <= sizeof copy) {
    memcpy(&copy, address, length);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&copy;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&copy;
    if (copy.ss_family == AF_INET && length >= sizeof *v4 && v4->sin_addr.s_addr == INADDR_ANY) {
      v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      return real_bind(descriptor, (struct sockaddr *)&copy, length);
    }
    if (copy.ss_family == AF_INET6 && length >= sizeof *v6 && IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr)) {
      inet_pton(AF_INET6, "::ffff:127.0.0.1", &v6->sin6_addr); /* IPv4-mapped: clients dial 127.0.0.1 */
      return real_bind(descriptor, (struct sockaddr *)&copy, length);
    }
  }
  return real_bind(descriptor, address, length);
}

/* Writes the address and the port of one end of a connection in the form that the kernel's socket diagnosis expects.
 * Returns 0 if it is not an IP address. */
static int read_end(const struct sockaddr_storage *end, __be32 address[4], __be16 *port) {
  const struct sockaddr_in *v4 = (const struct sockaddr_in *)end;
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)end;
  if (end->ss_family == AF_INET) {
    memcpy(address, &v4->sin_addr, sizeof v4->sin_addr);
    *port = v4->sin_port;
  } else if (end->ss_family == AF_INET6) {
    memcpy(address, &v6->sin6_addr, sizeof v6->sin6_addr);
    *port = v6->sin6_port;
  }
  return end->ss_family == AF_INET || end->ss_family == AF_INET6;
}

/* Asks the kernel about the TCP socket at the other end of a connection on this machine. Returns 0 without an answer. */
static int find_peer(int connection, struct inet_diag_msg *peer) {
  struct sockaddr_storage ours, theirs;
  socklen_t our_length = sizeof ours, their_length = sizeof theirs;
  if (getsockname(connection, (struct sockaddr *)&ours, &our_length)) return 0;
  if (getpeername(connection, (struct sockaddr *)&theirs, &their_length)) return 0; /* it is gone already */

  struct {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
  } request;
  memset(&request, 0, sizeof request);
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST; /* no dump: just this one socket */
  request.body.sdiag_family = (__u8)ours.ss_family; /* two IPv4-mapped addresses find an IPv4 client, too */
  request.body.sdiag_protocol = IPPROTO_TCP;
  struct inet_diag_sockid *id = &request.body.id;
  id->idiag_cookie[0] = id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  /* Source and destination are as the peer sees them, because the question is about the peer's socket. */
  if (!read_end(&theirs, id->idiag_src, &id->idiag_sport) || !read_end(&ours, id->idiag_dst, &id->idiag_dport)) return 0;

  /* A new socket for each question needs no lock and is safe after fork(). The answer is there when send() returns. */
  int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (netlink < 0) return 0;
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK}, sender;
  socklen_t sender_length = sizeof sender;
  union {
    struct nlmsghdr header;
    char bytes[1024];
  } answer;
  ssize_t length = -1;
  if (sendto(netlink, &request, sizeof request, 0, (struct sockaddr *)&kernel, sizeof kernel) == sizeof request)
    length = recvfrom(netlink, &answer, sizeof answer, MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_length);
  close(netlink);
  if (length < (ssize_t)NLMSG_LENGTH(sizeof *peer) || sender_length != sizeof sender || sender.nl_pid != 0) return 0;
  if (answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY) return 0; /* an error, for instance: there is no such socket */
  memcpy(peer, NLMSG_DATA(&answer.header), sizeof *peer);
  return 1;
}

static int is_established(int connection) {
  struct tcp_info info;
  socklen_t length = sizeof info;
  return getsockopt(connection, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state == TCP_ESTABLISHED;
}

/* Returns whether a connection's other end is a socket that this process's user id opened and that is still open. */
static int is_ours(int connection) {
  struct inet_diag_msg peer;
  if (!find_peer(connection, &peer)) return 0;
  /* A closed socket that still has data to send has lost its owner: the kernel may report user id 0 for it. */
  if (peer.idiag_state != TCP_ESTABLISHED || peer.idiag_inode == 0) return 0;
  if (peer.idiag_uid != geteuid()) return 0;
  /* If the connection is still established now, the answer was not about a later connection from the same port. */
  return is_established(connection);
}

int accept4(int descriptor, struct sockaddr *address, socklen_t *length, int flags) {
  accept4_function real_accept4 = (accept4_function)dlsym(RTLD_NEXT, "accept4");
  socklen_t capacity = length ? *length : 0;
  for (;;) {
    if (length) *length = capacity;
    int connection = real_accept4(descriptor, address, length, flags);
    if (connection < 0) return connection; /* the kernel's own error, such as EAGAIN if no connection waits */
    int family = AF_UNSPEC;
    socklen_t family_length = sizeof family;
    int is_known = getsockopt(connection, SOL_SOCKET, SO_DOMAIN, &family, &family_length) == 0;
    int allowed = (is_known && family != AF_INET && family != AF_INET6) || is_ours(connection);
    if (allowed) return connection;
    close(connection);
  }
}

int accept(int descriptor, struct sockaddr *address, socklen_t *length) {
  return accept4(descriptor, address, length, 0);
}
