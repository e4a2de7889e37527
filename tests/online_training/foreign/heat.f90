!> The heat solver of heat.c in Fortran: x is the first index, so that a rank's block is a strided section.
program heat
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: real64, int64
  use headrace
  use checking
  implicit none
  interface
    subroutine mpi_begin(rank, ranks) bind(c)
      import :: c_int
      integer(c_int), intent(out) :: rank, ranks
    end subroutine mpi_begin
    subroutine mpi_shift(line, received, n, to, from) bind(c)
      import :: c_int, c_double
      real(c_double), intent(in) :: line(*)
      real(c_double), intent(out) :: received(*)
      integer(c_int), value :: n, to, from
    end subroutine mpi_shift
    subroutine mpi_total(mine, all) bind(c)
      import :: c_double
      real(c_double), intent(in) :: mine
      real(c_double), intent(out) :: all
    end subroutine mpi_total
    subroutine mpi_work(unused) bind(c)
      import :: c_ptr
      type(c_ptr), value :: unused
    end subroutine mpi_work
    subroutine mpi_end() bind(c)
    end subroutine mpi_end
  end interface
  real(real64), parameter :: pi = acos(-1.0_real64)
  real(real64), allocatable :: u(:, :), v(:, :), line(:), other(:)
  real(real64) :: nu, sent, total
  character(len=1024) :: text, folder
  integer(c_int) :: rank, ranks
  integer :: n, steps, first, rows, step, i, j, code, simulations, unit
  integer(int64), allocatable :: cells(:)
  logical :: by_cells
  type(headrace_study) :: study

  call get_command_argument(1, text)
  read (text, *) n
  call get_command_argument(2, text)
  read (text, *) steps
  call get_command_argument(3, folder)
  call mpi_begin(rank, ranks)
  first = n * rank / ranks
  rows = n * (rank + 1) / ranks - first
  allocate (u(0:rows + 1, n), v(rows, n), line(n), other(n))
  sent = 0
  simulations = 0
  call headrace_open(study, ["u"], [n, n], headrace_float32, rank, ranks)
  call headrace_while_waiting(study, mpi_work)
  by_cells = command_argument_count() > 3
  if (by_cells) then
    cells = [((int(n, int64) * (first + i - 1) + j - 1, i = 1, rows), j = 1, n)]
    call check(study, headrace_cells(study, cells))
  end if
  do
    code = headrace_next(study)
    call check(study, code)
    if (code == 0) exit
    nu = 0.25_real64
    code = headrace_parameter(study, "nu", nu)
    do j = 1, n
      do i = 1, rows
        u(i, j) = sin(2 * pi * (first + i - 1) / n) * cos(4 * pi * (j - 1) / n) + (first + i - 1) * 0.01_real64 * (j - 1) / n
      end do
    end do
    do step = 0, steps - 1
      if (by_cells) then
        call check(study, headrace_put_cells(study, 1, reshape(u(1:rows, :), [rows * n])))
      else
        call check(study, headrace_put(study, 1, u(1:rows, :), [first, 0]))
      end if
      code = headrace_send(study, step, 0.1_real64 * step)
      call check(study, code)
      if (code == headrace_stop) exit
      line = u(rows, :)
      call mpi_shift(line, other, n, modulo(rank + 1, ranks), modulo(rank - 1, ranks))
      u(0, :) = other
      line = u(1, :)
      call mpi_shift(line, other, n, modulo(rank - 1, ranks), modulo(rank + 1, ranks))
      u(rows + 1, :) = other
      do j = 1, n
        do i = 1, rows
          v(i, j) = u(i, j) + 0.2_real64 * nu * (u(i + 1, j) + u(i - 1, j) + u(i, modulo(j, n) + 1) &
                    + u(i, modulo(j - 2, n) + 1) - 4 * u(i, j))
        end do
      end do
      u(1:rows, :) = v
    end do
    call check(study, headrace_end(study))
    sent = sent + headrace_bytes_sent(study)
    simulations = simulations + 1
    if (len_trim(folder) > 0) then
      write (text, "(a, '/', i0, '-', i0, '.bin')") trim(folder), headrace_simulation(study), rank
      open (newunit=unit, file=trim(text), access="stream", form="unformatted", status="replace")
      write (unit) transpose(u(1:rows, :))
      close (unit)
    end if
  end do
  call headrace_close(study)
  call mpi_total(sent, total)
  if (rank == 0) write (*, "('{""simulations"": ', i0, ', ""bytes"": ', i0, '}')") simulations, int(total, int64)
  call mpi_end()
end program heat
