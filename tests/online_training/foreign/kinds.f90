!> Fields of different shapes and types for the tests: one rank, without a study. Values are places in C order.
program kinds
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32
  use headrace
  use checking
  implicit none
  integer(int64), target :: a(2, 3, 2, 4)
  integer(int32), target :: b(3)
  real(real32) :: c(4, 5)
  integer :: i, j, k, l, step
  type(headrace_study) :: study
  do i = 1, 2
    do j = 1, 3
      do k = 1, 2
        do l = 1, 4
          a(i, j, k, l) = (((i - 1) * 3 + j - 1) * 2 + k - 1) * 4 + l - 1
        end do
      end do
    end do
  end do
  b = [0, 1, 2]
  c = transpose(reshape([(real(i), i = 0, 19)], [5, 4]))
  call headrace_open(study, ["a", "b", "c"], reshape([2, 3, 2, 4, 3, 0, 0, 0, 4, 5, 0, 0], [4, 3]), headrace_float64, 0, 1)
  call check(study, headrace_next(study))
  do step = 0, 1
    call check(study, headrace_put_address(study, 1, headrace_int64, c_loc(a), shape(a), [0, 0, 0, 0]))
    call check(study, headrace_put_address(study, 2, headrace_int32, c_loc(b), shape(b), [0]))
    call check(study, headrace_put(study, 3, c(1:2, :), [0, 0]))
    call check(study, headrace_put(study, 3, c, [0, 0]))
    call check(study, headrace_send(study, step, 0.5_c_double * step))
  end do
  call check(study, headrace_end(study))
  call headrace_close(study)
end program kinds
